// The app: a list on the left, one trajectory on the right, everything reachable from the keyboard and from the address.
import { el, number, plural, VirtualList } from "./dom.js";
import { marker } from "./diff.js";
import { ledger, tokens } from "./ledger.js";
import { turns } from "./turns.js";

const $ = (id) => document.getElementById(id);
const LABELS = {
  right: "Right", wrong: "Wrong", tool: "Tool", no_tool: "No tool", error: "Error", void: "Void turn",
  late: "Late call", trivial: "Trivial code", unfinished: "Unfinished",
};
const SORTS = {
  "id": "Oldest", "-id": "Newest", "-advantage": "Advantage ↓", "advantage": "Advantage ↑", "-response_length": "Longest",
  "response_length": "Shortest", "first_call": "Earliest call", "-first_call": "Latest call", "-calls": "Most calls",
  "-errors": "Most errors", "-sandbox_s": "Slowest code", "task_id": "Task",
};
const TABS = { turns: "Conversation", tokens: "Tokens", ledger: "Ledger", record: "Record", compare: "Compare" };
const NOTHING = ["Nothing here yet", "Trajectories appear as soon as the run has written one."];
const KEYS = [
  ["j  k  ↓  ↑", "next, previous trajectory"], ["n  p", "next, previous attempt at this problem"], ["1 … 5", "conversation, tokens, ledger, record, compare"],
  ["/", "search"], ["Esc", "leave the search, close"], ["g  G", "first, last"], ["f", "follow the newest"], ["t", "dark or light"], ["?", "this help"],
];

const state = { run: 0, runs: [], filters: new Set(), query: "", sort: "id", row: null, at: -1, tab: "turns", colour: "logprob", follow: false, other: null };
let body = null; // the trajectory on screen
let opening = 0, drawing = 0; // so far: an answer that something newer has overtaken is dropped

class Refused extends Error {}

async function api(path, parameters = {}) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(parameters)}`);
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(data.detail ?? `the server answered ${answer.status}`);
  return data;
}

function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

const guarded = (work) => async (...given) => {
  try {
    const result = await work(...given);
    say("");
    return result;
  } catch (error) {
    say(error instanceof Refused ? error.message : "The server does not answer. Is solostream view still running?");
    return undefined;
  }
};

/* the list */

const list = new VirtualList($("list"), $("rows"), {
  height: 58, page: 100, draw: drawRow,
  load: async (offset, limit) => {
    const sort = state.sort.replace("-", "");
    const page = await api(`runs/${state.run}/rows`, {
      filters: [...state.filters].join(","), query: state.query, sort, descending: state.sort.startsWith("-"), offset, limit,
    });
    return page;
  },
});

const mark = (row) => el("span", { className: `mark ${row.reward > 0.5 ? "good" : "bad"}`, title: `reward ${row.reward}` }, row.reward > 0.5 ? "✓" : "✗");

function badges(row) {
  return [
    row.void > 0 && el("span", { className: "pill warn" }, "void"),
    row.errors > 0 && el("span", { className: "pill bad", title: row.error_names }, plural(row.errors, "error")),
    row.late_calls > 0 && el("span", { className: "pill warn" }, "late"),
    row.trivial > 0 && el("span", { className: "pill warn" }, "trivial"),
    row.calls > 0 && el("span", { className: "pill" }, plural(row.calls, "call")),
  ];
}

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
  const counting = api(`runs/${state.run}/counts`, { query: state.query });
  counting.catch(() => {}); // awaited below, unless the list fails first and says so
  if (!(await list.reset(keep))) return false;
  $("found").textContent = state.filters.size || state.query ? `${number(list.total)} found` : "";
  const { generation } = list;
  const counts = await counting;
  if (generation !== list.generation) return false;
  for (const chip of $("filters").children) chip.querySelector("b").textContent = number(counts[chip.dataset.name]);
  return true;
}

/* one trajectory */

// The row is picked at once, its body arrives later; a tab chosen meanwhile is the tab that it opens in.
async function open(row) {
  const mine = ++opening;
  if (state.row !== row) state.other = null;
  state.row = row;
  remember();
  list.paint();
  $("list").setAttribute("aria-activedescendant", `row-${row}`);
  $("detail").setAttribute("aria-busy", "true");
  try {
    const got = await api(`runs/${state.run}/rows/${row}`);
    if (mine !== opening) return;
    body = got;
  } catch (error) {
    if (mine === opening) blank("Cannot be read", "");
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
  $("detail").replaceChildren(el("div", { className: "empty" }, el("h2", {}, title), text));
  $("detail").setAttribute("aria-busy", "false");
}

const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));

function facts({ row, record, behaviour }) {
  const versions = record.versions.filter((version) => version >= 0);
  const [low, high] = versions.length ? [Math.min(...new Set(versions)), Math.max(...new Set(versions))] : [null, null];
  return el("dl", { className: "facts" },
    fact("Reward", number(record.reward)),
    row.advantage !== null && fact(row.advantages ? "Mean advantage" : "Advantage", number(row.advantage, 3)),
    row.value !== null && fact("Tracked value", number(row.value, 3)),
    fact("Answer", record.answer ?? "none"),
    fact("Ending", record.ending.replace("_", " ")),
    fact("Response", plural(behaviour.response_length, "token")),
    fact("Sampled", plural(behaviour.action_tokens, "token")),
    fact("First call", behaviour.first_call === null ? "none" : `token ${behaviour.first_call}`),
    fact("Calls", `${behaviour.passed} of ${behaviour.calls} passed`),
    fact("In the sandbox", `${number(behaviour.sandbox_s, 3)} s`),
    low !== null && fact("Policy version", low === high ? `${low}` : `${low} – ${high}`),
    fact("Seed", String(record.seed)));
}

function ribbon(record) {
  const strip = el("div", { className: "ribbon", role: "group", "aria-label": "Turns by length" }, record.turns.map((turn, i) => {
    const part = el("button", { className: turn.role, title: `${turn.role}: ${plural(turn.end - turn.start, "token")}`,
      "aria-label": `Go to turn ${i + 1}, ${turn.role}`,
      onclick: () => { state.tab = "turns"; show().then(() => document.getElementById(`turn-${i}`)?.scrollIntoView({ behavior: "smooth" })); } });
    part.style.flex = `${Math.max(turn.end - turn.start, 1)} 1 0`;
    return part;
  }));
  const key = (name, text) => { const box = el("i"); box.style.background = `var(--${name})`; return el("span", {}, box, text); };
  return [strip, el("div", { className: "legend" }, key("series-6", "problem"), key("series-1", "policy"), key("tool", "tool output"))];
}

async function show() {
  if (!body) return;
  const mine = ++drawing;
  const { row, record } = body;
  const tabs = el("div", { className: "tabs", role: "tablist" }, Object.entries(TABS).map(([name, text], i) =>
    el("button", { role: "tab", "aria-selected": name === state.tab, onclick: () => { state.tab = name; remember(); show(); } }, text, el("kbd", {}, String(i + 1)))));
  const title = el("h1", {}, mark(row), record.task_id, row.step !== null && el("span", { className: "pill" }, `step ${row.step}`),
    row.sample !== null && el("span", { className: "pill" }, `sample ${row.sample}`), badges(row));
  const views = {
    turns: () => turns(record, undefined, body.row.advantages),
    tokens: () => tokens(body, state.colour, (kind) => { state.colour = kind; show(); }),
    ledger: () => ledger(body),
    record: () => el("pre", { className: "raw" }, JSON.stringify({ ...record, token_ids: "…", action_mask: "…", logprobs: "…", versions: "…" }, null, 2)),
    compare: () => compare(body),
  };
  const content = await views[state.tab]();
  if (mine !== drawing) return;
  $("detail").replaceChildren(el("div", { className: `page ${state.tab === "compare" ? "wide" : ""}` }, title, facts(body), ribbon(record), tabs, content));
}

async function attempts({ record }) {
  const found = await api("tasks", { task_id: record.task_id });
  return found.flatMap((rows, run) => rows.map((row) => ({ run, ...row })));
}

async function compare(here) {
  const run = state.run;
  const others = (await attempts(here)).filter((row) => !(row.run === run && row.id === here.row.id));
  if (!others.length) return el("div", { className: "empty" }, el("h2", {}, "Only one attempt"), "No other attempt at this problem is in these runs.");
  const chosen = others.find((row) => `${row.run}:${row.id}` === state.other) ?? others.find((row) => row.run !== run) ?? others.at(-1);
  const got = await api(`runs/${chosen.run}/rows/${chosen.id}`);
  const label = (row) => `${row.reward > 0.5 ? "✓" : "✗"} ${state.runs[row.run].name} · step ${row.step ?? "–"} · #${row.id} · ${plural(row.calls, "call")}`;
  const select = el("select", { id: "other", "aria-label": "Other attempt", onchange: (event) => { state.other = event.target.value; show(); } },
    others.map((row) => el("option", { value: `${row.run}:${row.id}`, selected: row === chosen }, label(row))));
  return el("div", { className: "pair" },
    el("section", {}, el("h2", {}, label({ ...here.row, run })), turns(here.record, marker(here.record, got.record))),
    el("section", {}, el("h2", {}, select), turns(got.record, marker(got.record, here.record))));
}

const sibling = guarded(async (by) => {
  if (!body) return;
  const { id } = body.row;
  const own = (await attempts(body)).filter((row) => row.run === state.run);
  const at = own.findIndex((row) => row.id === id);
  const next = at < 0 ? undefined : own[at + by];
  if (next) await open(next.id);
});

/* address, theme, keys, life */

function remember() {
  const parts = { run: state.run, row: state.row ?? "", tab: state.tab, filters: [...state.filters].join(","), query: state.query, sort: state.sort };
  history.replaceState(null, "", `#${new URLSearchParams(Object.entries(parts).filter(([, value]) => value !== ""))}`);
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.run = Math.max(0, Math.min(Number(given.get("run") ?? 0) || 0, state.runs.length - 1));
  state.filters = new Set((given.get("filters") ?? "").split(",").filter((name) => name in LABELS));
  state.query = given.get("query") ?? "";
  if (given.get("sort") in SORTS) state.sort = given.get("sort");
  if (given.get("tab") in TABS) state.tab = given.get("tab");
  return given.has("row") ? Number(given.get("row")) : null;
}

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
  try { next ? localStorage.setItem("theme", next) : (next = localStorage.getItem("theme")) && theme(next); } catch { /* storage is off: the choice lasts for this page */ }
}

const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark" ||
  (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);

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
  Object.assign(state, { run, row: null, at: -1 });
  await status();
  if (!(await narrow())) return;
  if (list.total) await pick(0);
  else blank(...NOTHING);
}

const refine = guarded(async () => { remember(); await narrow(); });

function toggle(name) {
  state.filters.has(name) ? state.filters.delete(name) : state.filters.add(name);
  refine();
}

const ACTIONS = {
  j: () => pick(state.at + 1), ArrowDown: () => pick(state.at + 1), k: () => pick(state.at - 1), ArrowUp: () => pick(state.at - 1),
  n: () => sibling(1), p: () => sibling(-1), g: () => pick(0), G: () => pick(list.total - 1),
  "/": () => $("search").focus(), f: () => follow(), t: () => theme(dark() ? "light" : "dark"), "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", guarded(async (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target === $("search")) return void $("list").focus();
  if (event.target.matches("input, select, textarea") || $("keys").open) return;
  const tab = Object.keys(TABS)[Number(event.key) - 1];
  if (tab) { state.tab = tab; remember(); return void (await show()); }
  const action = ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  await action();
}));

async function status() {
  const before = state.runs[state.run];
  const known = state.runs.length;
  state.runs = await api("runs");
  if (state.runs.length !== known) listRuns();
  const run = state.runs[state.run];
  if (!run) return void ($("state").textContent = "no run yet");
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
  ...state.runs.map((run, i) => el("option", { value: i, selected: i === state.run }, `${run.name} (${number(run.rows)})`)));

async function watch() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000));
    if (document.hidden) continue;
    await guarded(async () => {
      if (!(await status())) return;
      if (state.follow) await newest();
      else if (state.sort === "id" || list.box.scrollTop === 0) await narrow(true);
      if (state.row === null && list.total) await pick(0);
    })();
  }
}

async function start() {
  theme();
  $("keys").append(el("h2", {}, "Keyboard"), el("table", {}, KEYS.map(([key, what]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, what)))));
  await status();
  const row = recall();
  listRuns();
  $("sort").append(...Object.entries(SORTS).map(([name, text]) => el("option", { value: name, selected: name === state.sort }, text)));
  $("filters").append(...(await api("filters")).map((name) => el("button", { "data-name": name, "aria-pressed": false, onclick: () => toggle(name) }, LABELS[name], el("b"))));
  $("search").value = state.query;
  $("search").addEventListener("input", () => { state.query = $("search").value; clearTimeout(state.typing); state.typing = setTimeout(refine, 150); });
  $("sort").addEventListener("change", () => { state.sort = $("sort").value; refine(); });
  $("run").addEventListener("change", guarded(() => choose(Number($("run").value))));
  for (const id of ["sort", "run"]) $(id).addEventListener("change", () => $("list").focus()); // keys are shortcuts again, not choices
  $("follow").addEventListener("click", () => follow());
  $("theme").addEventListener("click", () => ACTIONS.t());
  $("help").addEventListener("click", () => ACTIONS["?"]());
  $("keys").addEventListener("click", () => $("keys").close());
  if (!state.runs.length) return blank(...NOTHING);
  await narrow();
  if (row !== null) {
    if (state.sort === "id" && !state.filters.size && !state.query) list.reveal(row);
    await open(row);
  } else if (list.total) await pick(0);
  else blank(...NOTHING);
}

guarded(start)().then(watch);
