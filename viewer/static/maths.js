// LaTeX in what a model wrote, as MathML that the browser draws (Temml, vendor/, MIT). What does not parse stays text.
import { el } from "./dom.js";

// $$…$$, \[…\], \(…\), $…$ (tight, so that "$5 and $6" is money) and \boxed{…} with braces two deep.
const FORMULA = /\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$(?!\s)((?:\\.|[^$\n\\])+?)(?<!\s)\$(?!\d)|(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/g;
const LONGEST = 4000; // characters: a longer one is no formula that a person reads
const LIMITS = { throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 1000], annotate: false };

// `text` as nodes, formulas drawn.
export function maths(text) {
  const parts = [];
  let done = 0;
  for (const found of text.matchAll(FORMULA)) {
    const drawn = formula(found);
    if (!drawn) continue;
    parts.push(text.slice(done, found.index), drawn);
    done = found.index + found[0].length;
  }
  return [...parts, text.slice(done)];
}

function formula([whole, dollars, brackets, parentheses, dollar, boxed]) {
  const displayed = dollars ?? brackets;
  const source = displayed ?? parentheses ?? dollar ?? boxed;
  if (source.length > LONGEST) return null;
  const made = el("span", { className: displayed ? "formula displayed" : "formula", title: whole });
  try {
    window.temml.render(source, made, { ...LIMITS, displayMode: displayed !== undefined });
  } catch {
    return null;
  }
  return made;
}
