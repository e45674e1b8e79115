// Python source to coloured text nodes: enough for reading, in one regular expression.
import { el } from "./dom.js";

const KEYWORDS = new Set(
  ("False None True and as assert async await break class continue def del elif else except finally for from global if " +
    "import in is lambda nonlocal not or pass raise return try while with yield match case").split(" "),
);
const TOKEN = new RegExp(
  [
    "(?<comment>#[^\\n]*)",
    "(?<string>[rbfuRBFU]{0,2}(?:\"\"\"[\\s\\S]*?(?:\"\"\"|$)|'''[\\s\\S]*?(?:'''|$)|\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?))",
    "(?<number>\\b\\d[\\d_]*(?:\\.\\d*)?(?:[eE][+-]?\\d+)?j?\\b)",
    "(?<word>[A-Za-z_]\\w*)",
  ].join("|"),
  "g",
);

export function python(code) {
  const parts = [];
  let done = 0;
  for (const found of code.matchAll(TOKEN)) {
    const { comment, string, number, word } = found.groups;
    const calls = word && code[found.index + word.length] === "(";
    const kind = comment ? "comment" : string ? "string" : number ? "number" : KEYWORDS.has(word) ? "keyword" : calls ? "call" : null;
    if (!kind) continue;
    parts.push(code.slice(done, found.index), el("span", { className: `py-${kind}` }, found[0]));
    done = found.index + found[0].length;
  }
  return [...parts, code.slice(done)];
}
