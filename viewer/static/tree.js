// A tree of episodes that begin alike: a line a leaf, drawn from the token at which it forks from another.
import { mark } from "./detail.js";
import { el, number, plural } from "./dom.js";
import { api, runPath } from "./page.js";

const LINE = 32; // pixels, as in the style sheet

// Depth first, the latest fork right below its parent: no line then crosses another.
function ordered(leaves) {
  const parent = (leaf) => leaf.path.at(-2);
  const below = (number) => leaves.filter((leaf) => parent(leaf) === number).sort((a, b) => b.forks.at(-1) - a.forks.at(-1) || a.leaf - b.leaf)
    .flatMap((leaf) => [leaf, ...below(leaf.leaf)]);
  return below(undefined);
}

export async function tree({ row, record }, run, open) {
  const leaves = ordered(await api(`${runPath(run)}/rows/${row.id}/tree`));
  const longest = Math.max(...leaves.map((leaf) => leaf.turns.at(-1)[2]));
  const share = (tokens) => `${(100 * tokens) / longest}%`;
  const line = new Map(leaves.map((leaf, i) => [leaf.leaf, i]));
  const drawn = leaves.map((leaf, i) => {
    const start = leaf.forks.at(-1) ?? 0;
    const track = el("span", { className: "lane", "aria-hidden": true }, leaf.turns.filter((turn) => turn[2] > start).map(([role, from, to]) => {
      const part = el("i", { className: `part ${role}`, title: `${role}: ${plural(to - from, "token")}` });
      part.style.left = share(Math.max(from, start));
      part.style.width = `max(2px, calc(${share(to - Math.max(from, start))} - 2px))`;
      return part;
    }));
    if (leaf.forks.length) {
      const fork = el("i", { className: "fork" });
      fork.style.left = `calc(${share(start)} - 8px)`;
      fork.style.height = `${(i - line.get(leaf.path.at(-2))) * LINE - 1}px`;
      track.append(fork);
    }
    const told = leaf.forks.length ? `, forks from leaf ${leaf.path.at(-2)} at token ${start}` : ", begins at the prompt";
    return el("li", {}, el("button", { "aria-current": leaf.id === row.id, "aria-label": `Leaf ${leaf.leaf}, reward ${number(leaf.reward)}${told}`, onclick: () => open(leaf.id) },
      el("span", { className: "leaf" }, mark(leaf), `leaf ${leaf.leaf}`, leaf.advantage !== null && el("span", { className: "soft" }, `A ${number(leaf.advantage, 2)}`)), track));
  });
  const shared = record.branch.forks.at(-1) ?? 0;
  return el("div", {}, el("p", { className: "soft" },
    `A tree of ${number(leaves.length)} attempts at one problem. This is leaf ${record.branch.path.at(-1)}`,
    shared ? `: it follows ${record.branch.path.slice(0, -1).map((leaf) => `leaf ${leaf}`).join(", then ")} for ${plural(shared, "token")} and goes on by itself.` : ", which began at the prompt."),
  el("ul", { className: "tree", "aria-label": "Leaves of the tree" }, drawn));
}
