// Two evaluations side by side, over the problems that both played.
import { el, number, plural } from "./dom.js";
import { chart, short } from "./curves.js";
import { $, api, furnish, given, guarded, link, name, remember } from "./page.js";
import { percent, table } from "./tables.js";
import { attempts } from "./tabs.js";

const NAMES = { avg: "avg@k", maj: "maj@k", reward_with_tool: "reward with code", reward_without_tool: "reward without code", late_ratio: "late calls", trivial_code_ratio: "trivial code", void_ratio: "void turns" };
const p = (value) => (value >= 0.001 ? `p = ${value.toFixed(3)}` : "p < 0.001");
const points = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)}`;
const tile = (title, value, note) => el("div", { className: "tile" }, el("div", { className: "name" }, title), el("div", { className: "value" }, value), el("div", { className: "note" }, note));

function sides(found) {
  const value = (metrics, key) => { const it = metrics[key]; return it && typeof it === "object" ? it.mean : it; };
  const six = ["first_call", "response_length", "code_rounds", "code_lines"];
  const rows = Object.keys(NAMES).map((key) => [NAMES[key], ...found.metrics.map((m) => percent(value(m, key)))]);
  rows.push(...["code_ratio", "code_pass_ratio"].map((key) => [key.replaceAll("_", " "), ...found.metrics.map((m) => percent(m.behaviour[key]))]));
  rows.push(...six.map((key) => [key.replaceAll("_", " "), ...found.metrics.map((m) => (m.behaviour[key] ? short(m.behaviour[key].mean) : "–"))]));
  return table([{ name: "Metric", show: (row) => row[0] }, ...found.names.map((run, i) => ({ name: run, show: (row) => row[i + 1], num: true }))], rows, { caption: "Side by side" });
}

function draw(found) {
  const [a, b] = found.names;
  const { difference: d, mcnemar: m } = found;
  const clear = d.p < 0.05;
  const total = found.rows.length;
  const attempt = (run, c, n) => (row) => el("a", { href: attempts(run, row.task_id), "aria-label": `${row[c]} of ${row[n]} solved by ${run}: its attempts at ${row.task_id}` }, `${row[c]} / ${row[n]}`);
  const left = [found.only_a && `${plural(found.only_a, "problem")} only in ${a}`, found.only_b && `${plural(found.only_b, "problem")} only in ${b}`, found.damaged && plural(found.damaged, "damaged line")].filter(Boolean);
  const [xs, low] = [found.curves[0].map((r) => r.k), found.curves];
  $("main").replaceChildren(
    el("div", { className: "title" }, el("h1", {}, `${a} → ${b}`), el("span", { className: "gap" }), el("a", { className: "button", href: link("/compare", { a: b, b: a }) }, "Swap")),
    el("p", { className: "verdict" }, clear ? `${b} is ${d.mean > 0 ? "better" : "worse"} than ${a} by ${Math.abs(100 * d.mean).toFixed(1)} points (95 % from ${points(d.low)} to ${points(d.high)}), over ${plural(total, "problem")}.`
      : `No clear difference: ${points(d.mean)} points (95 % from ${points(d.low)} to ${points(d.high)}), over ${plural(total, "problem")}.`),
    left.length ? el("p", { className: "soft" }, `Left out: ${left.join(", ")}.`) : "",
    el("div", { className: "tiles" }, tile(`avg, ${b} − ${a}`, points(d.mean), `points; 95 % from ${points(d.low)} to ${points(d.high)}`), tile("Permutation test", p(d.p), "paired by problem"),
      tile(`McNemar at k = ${found.k}`, p(m.p), `${number(m.only_b)} gained, ${number(m.only_a)} lost`), tile("Problems", number(total), "in both")),
    el("h2", { className: "hidden" }, "Where they differ"),
    el("div", { className: "grid" },
      xs.length > 1 ? chart({ title: "pass@k", x: "k", y: "share of problems", xs, low: 0, high: 1, series: low.map((curve, i) => ({ label: found.names[i], values: curve.map((r) => r.mean), kind: "line" })) }) : "",
      el("div", { className: "card" }, el("h3", {}, `Support flow, solved within ${found.k} samples`), flow(found, total)),
      el("div", { className: "card" }, el("h3", {}, "Side by side"), sides(found))),
    el("section", {}, el("h2", {}, "Problems"), table([
      { name: "Problem", value: (row) => row.task_id, className: "name wide", show: (row) => el("span", {}, row.task_id, el("br"), el("span", { className: "soft" }, row.prompt)) },
      { name: a, value: (row) => row.c_a / row.n_a, show: attempt(a, "c_a", "n_a"), num: true }, { name: b, value: (row) => row.c_b / row.n_b, show: attempt(b, "c_b", "n_b"), num: true },
      { name: "Difference", value: (row) => row.difference, show: (row) => points(row.difference), num: true }, { name: "Flow", value: (row) => row.flow },
    ], found.rows, { caption: "Problems of both, largest loss first", sort: { column: 3, down: false } })));
}

const MEANING = { preservation: "both solve it", expansion: "only the second", shrinkage: "only the first", unsolved: "neither" };
function flow(found, total) {
  const bar = (share, kind) => { const box = el("span", { className: `share ${kind}` }); box.style.width = `${100 * share}%`; return el("span", { className: "track", "aria-hidden": true }, box); };
  return table([
    { name: "Flow", show: ([kind]) => `${kind}: ${MEANING[kind]}` }, { name: "Problems", show: ([, count]) => number(count), num: true },
    { name: "Share", show: ([kind, count]) => el("span", { className: "bar-cell" }, percent(count / total), bar(count / total, kind)), num: true },
  ], Object.entries(found.flow), { caption: "Support flow" });
}

async function start() {
  const { a, b, k } = given();
  $("crumb").textContent = `${a ?? ""} → ${b ?? ""}`;
  name(`${a} → ${b}`);
  $("main").replaceChildren(el("h1", {}, `${a} → ${b}`), el("div", { className: "empty" }, "Grading and counting …"));
  try {
    draw(await api("compare", { a, b, k }));
  } catch (error) {
    $("main").replaceChildren(el("h1", {}, "Comparison"), el("div", { className: "empty" }, el("h2", {}, "These two cannot be compared"), error.message));
    throw error;
  }
  remember({ a, b, k });
}

furnish([], {});
guarded(start)();
