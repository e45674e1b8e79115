// Two attempts at one problem, side by side; words that only one of them has are marked.
import { el } from "./dom.js";

const MOST = 3000; // words: the table below grows with the square

const split = (text) => text.match(/\s+|\w+|[^\w\s]/g) ?? [];
const words = (text) => text.match(/\w+|[^\w\s]/g) ?? [];

// The set of positions of `ours` that belong to a longest common subsequence with `theirs`.
function common(ours, theirs) {
  const wide = theirs.length + 1;
  const table = new Uint16Array((ours.length + 1) * wide);
  for (let i = ours.length - 1; i >= 0; i--)
    for (let j = theirs.length - 1; j >= 0; j--)
      table[i * wide + j] = ours[i] === theirs[j] ? table[(i + 1) * wide + j + 1] + 1
        : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
  const kept = new Set();
  for (let i = 0, j = 0; i < ours.length && j < theirs.length;) {
    if (ours[i] === theirs[j]) kept.add(i++), j++;
    else if (table[(i + 1) * wide + j] >= table[i * wide + j + 1]) i++;
    else j++;
  }
  return kept;
}

const spoken = (record) => record.turns.filter((turn) => turn.role === "assistant").map((turn) => turn.text).join("\n");

// A painter for `turns`: marks in `record` what `other` does not have. It must be given all of the policy's text, in order.
export function marker(record, other) {
  const ours = words(spoken(record));
  const theirs = words(spoken(other));
  if (ours.length > MOST || theirs.length > MOST) return (text) => [text];
  const kept = common(ours, theirs);
  let at = 0;
  return (text) => split(text).map((part) => (/^\s/.test(part) || kept.has(at++) ? part : el("mark", {}, part)));
}
