// A run's page: what its tabs show, live; other runs over it; the address says all of it.
import { el, number, plural, showTab } from "./dom.js";
import { Curves, Logged } from "./curves.js";
import { configuration, files, health, problems, scores, system, tracker, verdict, wrong } from "./tabs.js";
import { $, api, every, furnish, given, guarded, link, name, remember, runPath, say } from "./page.js";
import { pill, status } from "./tables.js";

const TABS = { overview: "Overview", behaviours: "Behaviours", tracker: "Tracker", health: "Health", configuration: "Configuration", system: "System", files: "Files" };
const state = { run: "", others: [], tab: "overview", smoothing: 0, from: null, to: null, against: "", about: null, runs: [], charts: [] };
let drawn = []; // the curves on the page
let logged = []; // their numbers: the run's own first

function recall() {
  const from = given();
  const step = (text) => (text === undefined || text === "" || isNaN(text) ? null : Number(text));
  Object.assign(state, {
    run: from.run ?? "", others: (from.with ?? "").split(",").filter(Boolean), tab: from.tab in TABS ? from.tab : "overview",
    smoothing: Math.min(Math.max(Number(from.smooth) || 0, 0), 0.99), from: step(from.from), to: step(from.to), against: from.against ?? "",
  });
}

function keep(push = false) {
  remember({ run: state.run, tab: state.tab === "overview" ? "" : state.tab, with: state.others.join(","), smooth: state.smoothing || "", from: state.from, to: state.to, against: state.against }, push);
}

const view = {
  get smoothing() { return state.smoothing; }, get from() { return state.from; }, get to() { return state.to; },
  zoomed(from, to) {
    Object.assign(state, { from: from === null ? null : Math.round(from), to: to === null ? null : Math.round(to) });
    keep();
    tools();
    redraw();
  },
};

const trains = () => state.about.kind === "training";
const tabs = () => Object.entries(TABS).filter(([tab]) => trains() || !["behaviours", "tracker", "health"].includes(tab));

function head() {
  const { about } = state;
  $("crumb").textContent = about.name;
  const more = state.others.map((other) => el("span", { className: "pill" }, other, " ", el("button", { className: "plain", "aria-label": `Remove ${other}`, onclick: () => overlay(state.others.filter((o) => o !== other)) }, "×")));
  const free = state.runs.filter((run) => run.kind === "training" && run.name !== state.run && !state.others.includes(run.name));
  const add = el("select", { id: "with", "aria-label": "Compare with another run", onchange: (event) => overlay([...state.others, event.target.value]) },
    el("option", { value: "" }, "Compare with …"), free.map((run) => el("option", { value: run.name }, run.name)));
  return [
    el("div", { className: "title" }, el("h1", {}, about.name), status(about), about.tags.map((tag) => pill(tag)), more,
      el("span", { className: "gap" }), trains() && free.length > 0 && add,
      el("a", { className: "button", href: link("/trajectories", { run: state.run }) }, "Trajectories"),
      el("a", { className: "button", href: `/api/${runPath(state.run)}/report`, download: "" }, "Report")),
    el("p", { className: "sub" }, [about.model, about.data, about.steps !== null && `${plural(about.steps, "step")}${about.planned ? ` of ${number(about.planned)}` : ""}`, about.path].filter(Boolean).join(" · ")),
    el("div", { className: "tabs", role: "tablist", "aria-label": "Views" }, tabs().map(([tab, text]) =>
      el("button", { role: "tab", id: `tab-${tab}`, "aria-controls": "panel", "aria-selected": tab === state.tab, tabindex: tab === state.tab ? 0 : -1, onclick: () => turn(tab), onkeydown: arrows }, text))),
  ];
}

function arrows(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const names = tabs().map(([tab]) => tab);
  turn(names[(names.indexOf(state.tab) + by + names.length) % names.length]).then(() => $(`tab-${state.tab}`).focus());
}

async function turn(tab) {
  state.tab = tab;
  keep(true);
  await show();
}

async function overlay(others) {
  state.others = others.filter(Boolean);
  keep(true);
  await start();
}

// Smoothing and the steps that are shown, over every page with curves.
function tools() {
  const box = $("tools");
  if (!box) return;
  const shown = (value) => (value ? `smoothing ${value}` : "no smoothing");
  const said = el("output", { for: "smooth" }, shown(state.smoothing));
  const smooth = el("input", { type: "range", id: "smooth", min: 0, max: 0.98, step: 0.02, value: state.smoothing, "aria-label": "Smoothing", "aria-valuetext": shown(state.smoothing), oninput: (event) => {
    state.smoothing = Number(event.target.value);
    said.textContent = shown(state.smoothing);
    event.target.setAttribute("aria-valuetext", shown(state.smoothing));
    keep();
    redraw();
  } });
  const edge = (which, label) => el("input", { type: "number", id: which, min: 0, value: state[which] ?? "", placeholder: which === "from" ? "first" : "last", "aria-label": label,
    onchange: (event) => { state[which] = event.target.value === "" ? null : Number(event.target.value); keep(); redraw(); } });
  box.replaceChildren(smooth, said, el("span", { className: "gap" }),
    el("span", { className: "steps" }, el("span", { className: "soft" }, "steps"), edge("from", "From step"), "–", edge("to", "To step")),
    el("button", { disabled: state.from === null && state.to === null, onclick: () => view.zoomed(null, null) }, "Whole run"));
}

function redraw() {
  for (const curves of drawn) if (!curves.figure.hidden) curves.draw();
}

async function content() {
  const { run, about, tab } = state;
  const wanted = state.charts.filter((chart) => chart.tab === tab);
  drawn = wanted.map((chart) => new Curves(chart, view));
  const any = drawn.map((curves) => curves.fill(logged)).some(Boolean);
  const curves = any ? [el("div", { className: "toolbar", id: "tools" }), el("h2", { className: "hidden" }, "Curves"), el("div", { className: "grid", id: "curves" }, drawn.map((one) => one.figure))] : [];
  if (tab === "overview") return trains() ? [...(await verdict(state)), ...curves, ...(await problems(state))] : scores(await api(`${runPath(run)}/evaluation`), run, about);
  if (tab === "behaviours") return [...curves, ...(await wrong(run))];
  if (tab === "tracker") return [...curves, ...(await tracker(run))];
  if (tab === "health") return [...health(logged[0]), ...curves];
  if (tab === "configuration") return configuration(state, (against) => { state.against = against; keep(); guarded(show)(); });
  if (tab === "system") return [...(await system(run)), ...curves];
  return files(run);
}

let drawing = 0;
async function show() {
  const mine = ++drawing;
  name(`${TABS[state.tab]} · ${state.run}`);
  const before = $("panel")?.dataset.tab === state.tab ? [...$("panel").children] : [el("div", { className: "empty" }, "Reading …")];
  $("main").replaceChildren(...head(), el("div", { id: "panel", "data-tab": state.tab, role: "tabpanel", "aria-labelledby": `tab-${state.tab}`, "aria-busy": true }, before));
  showTab($("main").querySelector(".tabs"));
  let made;
  try {
    made = await content();
  } catch (error) {
    if (mine === drawing) $("panel").replaceChildren(el("div", { className: "empty" }, el("h2", {}, "Nothing to show yet"), error.message));
    throw error;
  } finally {
    if (mine === drawing) $("panel").setAttribute("aria-busy", "false");
  }
  if (mine !== drawing) return;
  $("panel").replaceChildren(...made);
  tools();
  redraw(); // now that their width is known
}

async function start() {
  recall();
  state.runs = await api("runs");
  if (!state.run && state.runs.length) state.run = state.runs[0].name;
  state.about = await api(runPath(state.run));
  logged = [state.run, ...state.others].map((run) => logged.find((one) => one.run === run) ?? new Logged(run));
  await Promise.all(logged.map((one) => one.refresh()));
  await show();
}

// New rows go into the curves that are there; the rest of the page is as it was opened.
async function live() {
  if (!state.about) return;
  const about = await api(runPath(state.run));
  const moved = JSON.stringify(about.held_out) !== JSON.stringify(state.about.held_out) || about.status !== state.about.status;
  state.about = about;
  $("state").textContent = `${number(about.rows)} trajectories${about.trouble ? ` · ${about.trouble}` : ""}`;
  const news = (await Promise.all(logged.map((one) => one.refresh()))).some(Boolean);
  if (moved && state.tab === "overview" && !$("main").contains(document.activeElement)) await show();
  else if (news) for (const curves of drawn) curves.fill(logged);
}

furnish([["←  →", "the tab before, the next (on a tab)"]], {});
addEventListener("popstate", guarded(start));
guarded(async () => { state.charts = await api("charts"); await start(); await live(); })().then(() => { if (!state.about) say($("notice").textContent || "no run yet"); return every(1000, live); });
