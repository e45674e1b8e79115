// The start page: all runs of the folder; search, sort, tick two (or more) to compare.
import { el, number, plural } from "./dom.js";
import { $, api, every, furnish, given, guarded, link, name, remember } from "./page.js";
import { duration, percent, pill, status, table, when } from "./tables.js";

const state = { runs: [], query: given().query ?? "", sort: { column: 8, down: true }, picked: new Set() };
const old = (given().sort ?? "").match(/^(-?)(\d+)$/);
if (old) state.sort = { column: Number(old[2]), down: old[1] === "-" };

const kinds = { training: "training", evaluation: "evaluation", trajectories: "trajectories" };
const page = (run) => (run.kind === "trajectories" ? link("/trajectories", { run: run.name }) : link("/run", { run: run.name }));
const COLUMNS = [
  { name: "Compare", show: (run) => el("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, checked: state.picked.has(run.name), onchange: (event) => pick(run.name, event.target.checked) }) },
  { name: "Name", value: (run) => run.name, show: (run) => el("span", {}, el("a", { href: page(run), className: "strong" }, run.name), " ", el("span", { className: "faint" }, kinds[run.kind])), className: "name", head: true },
  { name: "Model", value: (run) => short(run.model), className: "name" },
  { name: "Data", value: (run) => short(run.data), className: "name" },
  { name: "Steps", value: (run) => run.steps, show: (run) => (run.steps === null ? "–" : run.planned ? `${number(run.steps)} / ${number(run.planned)}` : number(run.steps)), num: true },
  { name: "Accuracy", value: (run) => run.after ?? run.before, show: accuracy, num: true },
  { name: "Trajectories", value: (run) => run.rows, show: (run) => el("a", { href: link("/trajectories", { run: run.name }), "aria-label": `Trajectories of ${run.name}` }, number(run.rows)), num: true },
  { name: "Cost", value: (run) => run.cost ?? run.wall_s, show: (run) => (run.cost === null ? duration(run.wall_s) : `${run.cost.toFixed(2)} · ${duration(run.wall_s)}`), num: true },
  { name: "Date", value: (run) => run.date, show: (run) => when(run.date), num: true },
  { name: "Status", value: (run) => run.status, show: (run) => status(run) },
  { name: "Tags", value: (run) => run.tags.join(" "), show: (run) => run.tags.length > 0 && el("span", {}, run.tags.flatMap((tag) => [pill(tag), " "])) },
];

// Of a path what tells it apart: the last two names, and of a checkpoint its run.
function short(text) {
  const parts = text ? String(text).replace(/\/+$/, "").split("/") : [];
  return parts.filter((part, i) => i >= parts.length - 3 && part !== "checkpoints").slice(-2).join("/") || null;
}

function accuracy(run) {
  if (run.before === null) return percent(run.after);
  if (run.after === null) return percent(run.before);
  const gain = 100 * (run.after - run.before);
  return el("span", {}, `${percent(run.before)} → ${percent(run.after)} `, el("span", { className: gain >= 0 ? "up" : "down" }, `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)}`));
}

function pick(run, on) {
  on ? state.picked.add(run) : state.picked.delete(run);
  choice();
}

function choice() {
  const picked = state.runs.filter((run) => state.picked.has(run.name));
  $("compare").disabled = picked.length < 2;
  $("chosen").textContent = picked.length ? picked.map((run) => run.name).join(", ") : "Tick two runs to compare them.";
}

// Two evaluations problem by problem; anything with curves as curves over each other.
function compare() {
  const picked = state.runs.filter((run) => state.picked.has(run.name));
  if (picked.length === 2 && picked.every((run) => run.kind !== "training")) location.href = link("/compare", { a: picked[0].name, b: picked[1].name });
  else {
    const [first, ...others] = [...picked].sort((a, b) => (a.kind !== "training") - (b.kind !== "training"));
    location.href = link("/run", { run: first.name, with: others.map((run) => run.name).join(",") });
  }
}

const words = (run) => [run.name, run.kind, run.model, run.data, run.status, ...run.tags].join(" ").toLowerCase();

let drawn = "";
function draw(force = false) {
  const wanted = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = state.runs.filter((run) => wanted.every((word) => words(run).includes(word)));
  const seen = JSON.stringify(rows);
  if (seen === drawn && !force) return;
  drawn = seen;
  $("state").textContent = state.runs.length === rows.length ? plural(rows.length, "run") : `${number(rows.length)} of ${plural(state.runs.length, "run")}`;
  const held = document.activeElement?.closest("#runs") ? [...$("runs").querySelectorAll("a, button, input")].indexOf(document.activeElement) : -1;
  const remembered = (sort) => { state.sort = sort; keep(); };
  $("runs").replaceChildren(rows.length ? table(COLUMNS, rows, { caption: "Runs", sort: state.sort, changed: remembered })
    : el("div", { className: "empty" }, el("h2", {}, state.runs.length ? "No run matches" : "No run yet"), state.runs.length ? "Change the search." : "A run appears here as soon as it has begun."));
  if (held >= 0) $("runs").querySelectorAll("a, button, input")[held]?.focus();
  choice();
}

function keep() {
  remember({ query: state.query, sort: `${state.sort.down ? "-" : ""}${state.sort.column}` });
}

async function load() {
  state.runs = await api("runs");
  draw();
}

name("Runs");
furnish([["/", "search"]], { "/": () => $("search").focus() });
$("search").value = state.query;
$("search").addEventListener("input", () => { state.query = $("search").value; keep(); draw(true); });
$("compare").addEventListener("click", compare);
guarded(load)().then(() => every(2000, load));
