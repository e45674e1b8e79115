// One trajectory: its verdict, its facts, and the tabs that look into it.
import { marker } from "./diff.js";
import { el, number, plural } from "./dom.js";
import { ledger, tokens } from "./ledger.js";
import { api, runPath } from "./page.js";
import { tree } from "./tree.js";
import { turns } from "./turns.js";

export const TABS = { turns: "Conversation", tokens: "Tokens", ledger: "Ledger", record: "Record", compare: "Compare", tree: "Tree" };
export const mark = (row) => el("span", { className: `mark ${row.reward > 0.5 ? "good" : "bad"}`, title: `reward ${row.reward}` }, el("span", { "aria-hidden": true }, row.reward > 0.5 ? "✓" : "✗"), el("span", { className: "hidden" }, row.reward > 0.5 ? "right" : "wrong"));

// Every call either passed or is an error: there are never more errors than calls.
export const written = (row) => row.passed + row.errors;

export function badges(row) {
  const calls = written(row);
  return [
    row.void > 0 && el("span", { className: "pill warn" }, "void"),
    row.late_calls > 0 && el("span", { className: "pill warn" }, "late"),
    row.trivial > 0 && el("span", { className: "pill warn" }, "trivial"),
    calls > 0 && el("span", { className: `pill ${row.errors ? "bad" : ""}`, title: row.error_names.split("|").join(", ") },
      row.errors ? `${plural(calls, "call")}, ${row.errors} failed` : plural(calls, "call")),
  ];
}

const ENDINGS = {
  answered: "It gave an answer.", void: "A turn had neither a complete call nor an answer.", turn_limit: "It used all its turns.",
  token_limit: "It used all its tokens.", time_limit: "It used all its time.", infra: "The sandbox or the reward failed: no reward counts.",
};

// Why the reward is what it is: the ending, the answer, what was expected, and the rule that graded it.
function verdict({ record, row }) {
  const { grading } = record;
  const expected = grading?.expected ?? [];
  const reasons = Object.entries(grading?.reasons ?? {});
  const item = (title, value, className = "") => el("div", {}, el("dt", {}, title), el("dd", { className }, value));
  return el("section", { className: `why ${row.reward > 0.5 ? "good" : "bad"}`, "aria-label": "Why this reward" },
    el("b", {}, `Reward ${number(record.reward)}. `), el("span", {}, record.ending === "answered" && record.answer === null ? "" : ENDINGS[record.ending] ?? record.ending),
    el("dl", {},
      item("Answer", record.answer ?? "none", "mono"),
      expected.length > 0 ? item("Expected", expected.join(" or "), "mono") : item("Expected", "not stored"),
      reasons.map(([rule, why]) => item("Graded by", `${rule}${rule in grading.scores ? ` (${number(grading.scores[rule])})` : ""}: ${why || "no reason given"}`)),
      grading?.style && item("Answer style", grading.style),
      grading?.failure && item("Failure", grading.failure)));
}

const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));

function facts({ row, record, behaviour }) {
  const versions = record.versions.filter((version) => version >= 0);
  const [low, high] = versions.length ? versions.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]) : [null, null];
  const calls = written(row);
  return el("dl", { className: "facts" },
    row.advantage !== null && fact(row.advantages ? "Mean advantage" : "Advantage", number(row.advantage, 3)),
    row.value !== null && fact("Tracked value", number(row.value, 3)),
    fact("Ending", record.ending.replace("_", " ")),
    fact("Response", plural(behaviour.response_length, record.unit === "bytes" ? "byte" : "token")),
    fact("Sampled", plural(behaviour.action_tokens, record.unit === "bytes" ? "byte" : "token")),
    fact("First call", behaviour.first_call === null ? "none" : `token ${behaviour.first_call}`),
    fact("Calls", calls ? `${behaviour.passed} of ${calls} passed` : "none"),
    fact("In the sandbox", `${number(behaviour.sandbox_s, 3)} s`),
    record.source && fact("Source", record.source),
    record.kind && fact("Kind", record.kind),
    low !== null && fact("Policy version", low === high ? `${low}` : `${low} – ${high}`),
    fact("Seed", String(record.seed)));
}

function ribbon(record, go) {
  const strip = el("div", { className: "ribbon", role: "group", "aria-label": "Turns by length" }, record.turns.map((turn, i) => {
    const part = el("button", { className: turn.role, title: `${turn.role}: ${plural(turn.end - turn.start, "token")}`, "aria-label": `Go to turn ${i + 1}, ${turn.role}`, onclick: () => go(i) });
    part.style.flex = `${Math.max(turn.end - turn.start, 1)} 1 0`;
    return part;
  }));
  const key = (colour, text) => { const box = el("i"); box.style.background = `var(--${colour})`; return el("span", {}, box, text); };
  return [strip, el("div", { className: "legend" }, key("series-6", record.turns.some((turn) => turn.role === "context") ? "problem, history that stays" : "problem"), key("series-1", "policy"), key("tool", "tool output"))];
}

async function compare(body, state, { attempts, redraw }) {
  const { run } = state;
  const others = (await attempts()).filter((row) => !(row.run === run && row.id === body.row.id));
  if (!others.length) return el("div", { className: "empty" }, el("h2", {}, "Only one attempt"), "No other attempt at this problem is in these runs.");
  const key = (row) => `${row.id}:${row.run}`;
  const chosen = others.find((row) => key(row) === state.other) ?? others.find((row) => row.run !== run) ?? others.at(-1);
  const got = await api(`${runPath(chosen.run)}/rows/${chosen.id}`);
  const label = (row) => `${row.reward > 0.5 ? "✓" : "✗"} ${row.run} · step ${row.step ?? "–"} · #${row.id} · ${plural(row.calls, "call")}`;
  const select = el("select", { id: "other", "aria-label": "Other attempt", onchange: (event) => { state.other = event.target.value; redraw(); } },
    others.map((row) => el("option", { value: key(row), selected: row === chosen }, label(row))));
  return el("div", { className: "pair" },
    el("section", { "aria-label": "This attempt" }, el("h2", {}, label({ ...body.row, run })), turns(body.record, { paint: marker(body.record, got.record), advantages: body.row.advantages, prefix: "a" })),
    el("section", { "aria-label": "The other attempt" }, el("h2", {}, select), turns(got.record, { paint: marker(got.record, body.record), advantages: got.row.advantages, prefix: "b" })));
}

// `state`: run, tab, colour, maths, other. `to`: turn(tab), redraw(), attempts(), open(row).
export async function detail(body, state, to) {
  const { row, record } = body;
  const shown = state.tab === "tree" && !record.branch ? "turns" : state.tab; // only what branched has a tree
  const tabs = el("div", { className: "tabs", role: "tablist", "aria-label": "Views of the trajectory" }, Object.entries(TABS).filter(([name]) => name !== "tree" || record.branch).map(([name, text], i) =>
    el("button", { role: "tab", id: `tab-${name}`, "aria-controls": "view", "aria-selected": name === shown, onclick: () => to.turn(name) }, text, el("kbd", { "aria-hidden": true }, String(i + 1)))));
  const save = (form, text) => el("a", { className: "button", download: "", href: `/api/${runPath(state.run)}/rows/${row.id}/export?form=${form}` }, text);
  const title = el("div", { className: "title" }, el("h1", {}, mark(row), record.task_id, row.step !== null && el("span", { className: "pill" }, `step ${row.step}`),
    row.sample !== null && el("span", { className: "pill" }, `sample ${row.sample}`), badges(row)), el("span", { className: "gap" }), save("markdown", "Markdown"), save("inspect", "Inspect log"));
  const views = {
    turns: () => turns(record, { advantages: row.advantages, maths: state.maths }),
    tokens: () => tokens(body, state.colour, (kind) => { state.colour = kind; to.redraw(); }),
    ledger: () => ledger(body),
    record: () => el("pre", { className: "raw", tabindex: 0 }, JSON.stringify({ ...record, token_ids: "…", action_mask: "…", logprobs: "…", versions: "…" }, null, 2)),
    compare: () => compare(body, state, to),
    tree: () => tree(body, state.run, to.open),
  };
  const go = (i) => to.turn("turns").then(() => { const turn = document.getElementById(`turn-${i}`); if (turn) { turn.open = true; turn.scrollIntoView({ behavior: "smooth" }); } });
  const content = await views[shown]();
  return el("div", { className: `page ${shown === "compare" ? "wide" : ""}` }, title, verdict(body), facts(body), ribbon(record, go), tabs,
    el("div", { id: "view", role: "tabpanel", "aria-labelledby": `tab-${shown}` }, content));
}
