// Trajectories: a list on the left, one of them on the right, everything reachable from the keyboard and from the address.
import { el, number, plural, showTab, VirtualList } from "./dom.js";
import { detail, mark, badges, TABS } from "./detail.js";
import { $, api, every, furnish, given, guarded, link, name, remember, runPath } from "./page.js";

const LABELS = {
  right: "Right", wrong: "Wrong", tool: "Tool", no_tool: "No tool", error: "Error", void: "Void turn",
  late: "Late call", trivial: "Trivial code", unfinished: "Unfinished",
};
const SORTS = {
  "id": "Oldest", "-id": "Newest", "-advantage": "Advantage ↓", "advantage": "Advantage ↑", "-response_length": "Longest",
  "response_length": "Shortest", "first_call": "Earliest call", "-first_call": "Latest call", "-calls": "Most calls",
  "-errors": "Most errors", "-sandbox_s": "Slowest code", "task_id": "Problem",
};
const NARROW = ["step", "source", "kind", "ending", "error", "task"]; // to one value each
const NOTHING = ["Nothing here yet", "Trajectories appear as soon as the run has written one."];
const KEYS = [
  ["j  k  ↓  ↑", "next, previous trajectory"], ["n  p", "next, previous attempt at this problem"], ["1 … 6", "conversation, tokens, ledger, record, compare, tree"],
  ["/", "search"], ["Esc", "leave the search, close"], ["g  G", "first, last"], ["f", "follow the newest"], ["m", "formulas or their LaTeX"],
];

const state = { run: "", runs: [], filters: new Set(), narrow: {}, query: "", sort: "id", row: null, at: -1, tab: "turns", colour: "logprob", follow: false, other: null, maths: true };
let body = null; // the trajectory on screen
let opening = 0, drawing = 0; // so far: an answer that something newer has overtaken is dropped

const here = () => state.runs.find((run) => run.name === state.run);

/* the list */

const list = new VirtualList($("list"), $("rows"), {
  height: 58, page: 100, draw: drawRow,
  load: (offset, limit) => api(`${runPath(state.run)}/rows`, {
    filters: [...state.filters].join(","), query: state.query, sort: state.sort.replace("-", ""), descending: state.sort.startsWith("-"), offset, limit, ...state.narrow,
  }),
});

function drawRow(row, i) {
  const made = el("div", { className: `row ${row.id === state.row ? "picked" : ""}`, role: "option", id: `row-${row.id}`,
    "aria-selected": row.id === state.row, onclick: () => pick(i) },
    el("div", { className: "first" }, mark(row), el("span", { className: "name" }, row.task_id), badges(row)),
    el("div", { className: "prompt" }, `${row.step === null ? "" : `step ${row.step} · `}${row.prompt}`));
  if (row.id === state.row) state.at = i;
  return made;
}

async function pick(index) {
  if (index < 0 || index >= list.total) return;
  const row = await list.item(index);
  if (!row) return;
  state.at = index;
  list.reveal(index);
  await open(row.id);
}

// False when another call has overtaken this one.
async function narrow(keep = false) {
  for (const chip of $("filters").children) chip.setAttribute("aria-pressed", state.filters.has(chip.dataset.name));
  const counting = api(`${runPath(state.run)}/counts`, { query: state.query, ...state.narrow });
  counting.catch(() => {}); // awaited below, unless the list fails first and says so
  if (!(await list.reset(keep))) return false;
  const some = state.filters.size || state.query || Object.keys(state.narrow).length;
  $("found").textContent = some ? `${number(list.total)} found` : "";
  const { generation } = list;
  const counts = await counting;
  if (generation !== list.generation) return false;
  for (const chip of $("filters").children) chip.querySelector("b").textContent = number(counts[chip.dataset.name]);
  return true;
}

// What one may narrow by, from what the run has: a step, a source, a kind of problem, an ending, an error, and the problem that is shown.
async function choices() {
  const known = await api(`${runPath(state.run)}/choices`);
  const set = (which, value) => { value === "" ? delete state.narrow[which] : (state.narrow[which] = value); refine(true); };
  const select = (which, label, values) => values.length > 0 && el("select", { id: `by-${which}`, "aria-label": label, onchange: (event) => set(which, event.target.value) },
    el("option", { value: "" }, label), values.map((value) => el("option", { value, selected: state.narrow[which] === value }, value.replaceAll("_", " "))));
  $("narrow").replaceChildren(...[
    known.steps && el("input", { id: "by-step", type: "number", min: known.steps[0], max: known.steps[1], placeholder: "Step", "aria-label": `Step, ${known.steps[0]} to ${known.steps[1]}`, value: state.narrow.step ?? "", onchange: (event) => set("step", event.target.value) }),
    known.sources.length > 1 && select("source", "Source", known.sources), known.kinds.length > 1 && select("kind", "Kind of problem", known.kinds), select("ending", "Ending", known.endings), select("error", "Error name", known.errors),
    state.narrow.task && el("button", { className: "picked", title: "Show all problems", onclick: () => { set("task", ""); choices(); } }, `${state.narrow.task} ×`),
  ].filter(Boolean));
}

/* one trajectory */

// The row is picked at once, its body arrives later; a tab chosen meanwhile is the tab that it opens in.
async function open(row, push = true) {
  const mine = ++opening;
  if (state.row !== row) state.other = null;
  const moved = push && state.row !== null && state.row !== row;
  state.row = row;
  keep(moved);
  list.paint();
  $("list").setAttribute("aria-activedescendant", `row-${row}`);
  $("detail").setAttribute("aria-busy", "true");
  try {
    const got = await api(`${runPath(state.run)}/rows/${row}`);
    if (mine !== opening) return;
    body = got;
  } catch (error) {
    if (mine === opening) blank("Cannot be read", error.message);
    throw error;
  }
  await show();
  if (mine !== opening) return;
  $("detail").scrollTop = 0;
  $("detail").setAttribute("aria-busy", "false");
}

function blank(title, text) {
  opening += 1;
  drawing += 1;
  body = null;
  $("list").removeAttribute("aria-activedescendant");
  $("detail").replaceChildren(el("div", { className: "empty" }, el("h1", {}, title), text));
  $("detail").setAttribute("aria-busy", "false");
}

async function attempts() {
  return api("tasks", { task_id: body.record.task_id });
}

async function show() {
  if (!body) return;
  const mine = ++drawing;
  name(`${body.record.task_id} #${body.row.id} · ${state.run}`);
  const made = await detail(body, state, { turn, redraw: guarded(show), attempts, open: guarded(open) });
  if (mine !== drawing) return;
  $("detail").replaceChildren(made);
  showTab(made.querySelector(".tabs"));
}

function turn(tab) {
  state.tab = tab;
  keep(true);
  return guarded(show)();
}

const sibling = async (by) => {
  if (!body) return;
  const { id } = body.row;
  const own = (await attempts()).filter((row) => row.run === state.run);
  const at = own.findIndex((row) => row.id === id);
  const next = at < 0 ? undefined : own[at + by];
  if (next) await open(next.id);
};

/* address, keys, life */

function keep(push = false) {
  remember({ run: state.run, row: state.row ?? "", tab: state.tab === "turns" ? "" : state.tab, filters: [...state.filters].join(","), ...state.narrow, query: state.query, sort: state.sort === "id" ? "" : state.sort }, push);
}

// Returns the row that the address names.
function recall() {
  const from = given();
  state.run = state.runs.some((run) => run.name === from.run) ? from.run : (state.runs[0]?.name ?? "");
  state.filters = new Set((from.filters ?? "").split(",").filter((one) => one in LABELS));
  state.narrow = Object.fromEntries(NARROW.filter((which) => from[which]).map((which) => [which, from[which]]));
  state.query = $("search").value = from.query ?? "";
  state.sort = $("sort").value = from.sort in SORTS ? from.sort : "id";
  state.tab = from.tab in TABS ? from.tab : "turns";
  return from.row === undefined || from.row === "" || isNaN(from.row) ? null : Number(from.row);
}

function follow(on = !state.follow) {
  state.follow = on;
  $("follow").setAttribute("aria-pressed", on);
  if (on) guarded(newest)();
}

async function newest() {
  state.sort = $("sort").value = "-id";
  if (await narrow()) await pick(0);
}

async function choose(run) {
  blank("", "");
  Object.assign(state, { run, row: null, at: -1, narrow: {} });
  keep(true);
  await status();
  await choices();
  if (!(await narrow())) return;
  if (list.total) await pick(0);
  else blank(...NOTHING);
}

const refine = guarded(async (push = false) => { keep(push); await narrow(); });

function toggle(filter) {
  state.filters.has(filter) ? state.filters.delete(filter) : state.filters.add(filter);
  refine(true);
}

const digits = Object.fromEntries(Object.keys(TABS).map((tab, i) => [String(i + 1), () => turn(tab)]));
const ACTIONS = {
  ...digits, j: () => pick(state.at + 1), ArrowDown: () => pick(state.at + 1), k: () => pick(state.at - 1), ArrowUp: () => pick(state.at - 1),
  n: () => sibling(1), p: () => sibling(-1), g: () => pick(0), G: () => pick(list.total - 1),
  "/": () => $("search").focus(), f: () => follow(), m: () => { state.maths = !state.maths; return show(); },
};

async function status() {
  const before = here();
  const known = state.runs.length;
  state.runs = await api("runs");
  if (state.runs.length !== known) listRuns();
  if (!state.run && state.runs.length) state.run = state.runs[0].name;
  const run = here();
  if (!run) return void ($("state").textContent = "no run yet");
  $("crumb").textContent = "Run page";
  $("crumb").href = link("/run", { run: run.name });
  const share = run.size ? Math.floor((100 * run.indexed) / run.size) : 100;
  const parts = [`${number(run.rows)} ${run.rows === 1 ? "trajectory" : "trajectories"}`];
  if (share < 100 && run.size - run.indexed > 1e6) parts.push(`reading, ${share} %`);
  if (run.damaged) parts.push(`${plural(run.damaged, "damaged line")} skipped`);
  if (run.trouble) parts.push(run.trouble);
  $("state").textContent = parts.join(" · ");
  $("state").title = run.damage.map(([line, why]) => `line ${line}: ${why}`).join("\n");
  return !before || before.rows !== run.rows;
}

const listRuns = () => $("run").replaceChildren(
  ...state.runs.map((run) => el("option", { value: run.name, selected: run.name === state.run }, `${run.name} (${number(run.rows)})`)));

async function live() {
  if (!(await status())) return;
  if (state.follow) await newest();
  else if (state.sort === "id" || list.box.scrollTop === 0) await narrow(true);
  if (!body && list.total) { await choices(); await pick(0); }
}

// Show what the address says: at the start, and when the back button changes it.
async function visit() {
  const row = recall();
  await status();
  listRuns();
  if (!state.runs.length) return blank(...NOTHING);
  await choices();
  await narrow();
  if (row !== null) {
    if (state.sort === "id" && !state.filters.size && !state.query && !Object.keys(state.narrow).length) list.reveal(row);
    await open(row, false);
  } else if (list.total) await pick(0);
  else blank(...NOTHING);
}

async function start() {
  state.runs = await api("runs");
  furnish(KEYS, ACTIONS);
  $("sort").append(...Object.entries(SORTS).map(([value, text]) => el("option", { value }, text)));
  $("filters").append(...(await api("filters")).map((one) => el("button", { "data-name": one, "aria-pressed": false, onclick: () => toggle(one) }, LABELS[one], el("b"))));
  $("search").addEventListener("input", () => { state.query = $("search").value; clearTimeout(state.typing); state.typing = setTimeout(refine, 150); });
  $("search").addEventListener("keydown", (event) => event.key === "Escape" && $("list").focus());
  $("sort").addEventListener("change", () => { state.sort = $("sort").value; refine(true); });
  $("run").addEventListener("change", guarded(() => choose($("run").value)));
  for (const id of ["sort", "run"]) $(id).addEventListener("change", () => $("list").focus()); // keys are shortcuts again, not choices
  $("follow").addEventListener("click", () => follow());
  addEventListener("popstate", guarded(visit));
  await visit();
}

guarded(start)().then(() => every(500, live));
