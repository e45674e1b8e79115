// What is on the tabs of a run's page besides its curves.
import { el, number, plural } from "./dom.js";
import { chart, short } from "./curves.js";
import { api, link, runPath } from "./page.js";
import { bytes, duration, percent, table, when } from "./tables.js";

const section = (title, ...inside) => el("section", {}, el("h2", {}, title), ...inside);
const tile = (title, value, note) => el("div", { className: "tile" }, el("div", { className: "name" }, title), el("div", { className: "value" }, value), el("div", { className: "note" }, note));
export const attempts = (run, task) => link("/trajectories", { run, task });
const problem = (run) => ({ name: "Problem", value: (row) => row.task_id, className: "name wide",
  show: (row) => el("span", {}, el("a", { href: attempts(run, row.task_id) }, row.task_id), el("br"), el("span", { className: "soft" }, row.prompt)) });

const unit = (row, value) => (value === null || value === undefined ? "–" : row.unit === "%" ? percent(value) : short(value));
const range = (row, at) => (row[`${at}_low`] === null ? "" : ` (${unit(row, row[`${at}_low`])} – ${unit(row, row[`${at}_high`])})`);

// In a sentence and a table: what training did to the held-out problems, for each of the runs.
export async function verdict({ about, others }) {
  const all = [about, ...(await Promise.all(others.map((run) => api(runPath(run)))))];
  const made = all.flatMap((one) => {
    const rows = one.held_out;
    const told = rows.find((row) => row.change !== null);
    if (!rows.length) return [el("p", { className: "verdict" }, `${one.name}: nothing held out was measured yet.`)];
    const text = told ? `${one.name}: held-out accuracy went from ${percent(told.before)} to ${percent(told.after)}, ${moved(told.change)}${sure(told)} in ${plural(one.steps ?? 0, "step")}.` : `${one.name}: measured once so far, before training.`;
    return [el("p", { className: "verdict" }, text), table([
      { name: "Held-out problems", show: (row) => (row.unit && row.unit !== "%" ? `${row.label}, ${row.unit}` : row.label) },
      { name: "Before", show: (row) => `${unit(row, row.before)}${range(row, "before")}`, num: true },
      { name: "After", show: (row) => `${unit(row, row.after)}${range(row, "after")}`, num: true },
      { name: "Change", show: change, num: true },
    ], rows, { caption: `Held-out problems of ${one.name}, before and after` })];
  });
  return [el("div", { className: "card" }, made)];
}

const sure = (row) => (row.change_low === null ? "" : ` (95 % from ${points(row.change_low)} to ${points(row.change_high)}${row.paired ? `, paired over ${plural(row.paired, "problem")}` : ""})`);
const moved = (change) => (Math.abs(change) < 0.0005 ? "the same" : `${change > 0 ? "up" : "down"} ${Math.abs(100 * change).toFixed(1)} points`);
const points = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)}`;

function change(row) {
  if (row.change === null) return "–";
  const said = row.unit === "%" ? `${points(row.change)} points` : signed(row.change);
  return row.change_low === null ? said : `${said} (${points(row.change_low)} – ${points(row.change_high)})`;
}

const signed = (value) => `${value >= 0 ? "+" : "−"}${short(Math.abs(Number(value.toFixed(3))))}`;

export async function problems({ run }) {
  const rows = await api(`${runPath(run)}/problems`, { limit: 12 });
  if (!rows.length) return [];
  return [section("Hardest problems", table([
    problem(run),
    { name: "Attempts", value: (row) => row.attempts, num: true },
    { name: "Mean reward", value: (row) => row.reward, show: (row) => short(row.reward), num: true },
    { name: "Calls", value: (row) => row.calls, show: (row) => short(row.calls), num: true },
    { name: "Last", show: (row) => el("a", { href: link("/trajectories", { run, task: row.task_id, row: row.row }), "aria-label": `Last attempt at ${row.task_id}` }, "attempt"), num: true },
  ], rows, { caption: "Hardest problems" }))];
}

export async function wrong(run) {
  const { errors, sources } = await api(`${runPath(run)}/behaviours`);
  const [xs, ...shares] = errors.steps;
  const made = [];
  if (errors.names.length && xs.length > 1) {
    made.push(el("h2", { className: "hidden" }, "Errors"), el("div", { className: "grid" }, chart({ title: "Errors by kind", x: "step", y: "calls a trajectory", xs, low: 0, series: errors.names.map((label, i) => ({ label, values: shares[i], kind: "line" })) }),
      el("div", { className: "card" }, el("h3", {}, "Calls that went wrong"), table([
        { name: "Error", value: ([error]) => error, show: ([error]) => el("a", { href: link("/trajectories", { run, error }) }, error) },
        { name: "Calls", value: ([, count]) => count, show: ([, count]) => number(count), num: true },
      ], errors.totals, { caption: "Calls that went wrong" }))));
  }
  if (sources.length > 1) made.push(section("By source", table([
    { name: "Source", value: (row) => row.source, show: (row) => el("a", { href: link("/trajectories", { run, source: row.source }) }, row.source || "none") },
    { name: "Trajectories", value: (row) => row.trajectories, show: (row) => number(row.trajectories), num: true },
    { name: "Mean reward", value: (row) => row.reward, show: (row) => short(row.reward), num: true },
    { name: "With code", value: (row) => row.code_ratio, show: (row) => percent(row.code_ratio), num: true },
    { name: "First call, token", value: (row) => row.first_call, show: (row) => short(row.first_call), num: true },
  ], sources, { caption: "By source of the problems" })));
  return made;
}

export async function tracker(run) {
  const known = await api(`${runPath(run)}/tracker`);
  if (!known) return [el("div", { className: "empty" }, el("h2", {}, "No tracker"), "The trajectories of this run carry no tracked value.")];
  const tenths = Array.from({ length: known.values.length }, (_, i) => (i + 0.5) / known.values.length);
  const [xs, value, reward, open] = known.steps;
  const by = [...known.calibration].sort((a, b) => a[0] - b[0]);
  const left = known.variance[0] ? known.variance[1] / known.variance[0] : null;
  return [
    el("h2", { className: "hidden" }, "The tracker against the trajectories"),
    el("div", { className: "tiles" },
      tile("Mean squared error", short(known.brier), `over ${plural(known.trajectories, "trajectory").replace("ys", "ies")}`),
      tile("Variance left", left === null ? "–" : percent(left), "of the reward's, after the value is taken away")),
    el("div", { className: "grid" },
      chart({ title: "Calibration", x: "tracked value at dispatch", y: "mean reward", xs: by.map((b) => b[0]), low: 0, high: 1, note: "On the dashed line the tracker knew.",
        series: [{ label: "mean reward", values: by.map((b) => b[1]), kind: "line" }, { label: "known", values: by.map((b) => b[0]), kind: "guide" }] }),
      chart({ title: "Values over time", x: "step", y: "success rate", xs, low: 0, high: 1, series: [{ label: "tracked value", values: value, kind: "line" }, { label: "reward", values: reward, kind: "line" }, { label: "share drawn between 0.2 and 0.8", values: open, kind: "line" }] }),
      chart({ title: "What is sampled", x: "tracked value at dispatch", y: "trajectories", xs: tenths, low: 0, series: [{ label: "trajectories", values: known.drawn, kind: "bars" }] }),
      chart({ title: "Values now", x: "tracked value", y: "problems", xs: tenths, low: 0, series: [{ label: "problems", values: known.values, kind: "bars" }] }),
      chart({ title: "Sampling weights", x: "√(v(1 − v)) + ε", y: "problems", xs: tenths, low: 0, series: [{ label: "problems", values: known.weights, kind: "bars" }] })),
  ];
}

// What a person asks first: who waits, how old, how far apart; over the whole run.
export function health(logged) {
  const mean = (key) => { const found = logged.points({ phase: "rl", key }); return found && found[1].reduce((a, b) => a + b, 0) / found[1].length; };
  const most = (key) => { const found = logged.points({ phase: "rl", key }); return found && Math.max(...found[1]); };
  const sum = (keys) => { const found = keys.map((key) => logged.points({ phase: "rl", key })).filter(Boolean); return found.length ? found.flatMap(([, values]) => values).reduce((a, b) => a + b, 0) : null; };
  const failed = sum(["infra_failures", "reward_failures", "engine_failures"].map((n) => `filter/${n}`));
  const tiles = [
    ["Learner idle", mean("idle/learner"), percent, "of a step, mean"], ["Rollouts idle", mean("idle/rollout"), percent, "of a step, mean"],
    ["Staleness", most("staleness/max"), short, "policy versions, largest"], ["Mismatch", most("mismatch/on_policy_max"), short, "nats on tokens of one policy, largest"],
    ["Failures", failed, number, "of sandbox, reward and engine"], ["Stale", sum(["filter/stale"]), number, "trajectories dropped as too old"],
  ];
  const known = tiles.filter(([, value]) => value !== null);
  return known.length ? [el("div", { className: "tiles" }, known.map(([title, value, show, note]) => tile(title, show(value), note)))] : [];
}

export async function configuration({ run, runs, against }, choose) {
  const recipes = await api("recipes");
  const options = [...runs.filter((one) => one.name !== run).map((one) => [`run:${one.name}`, `run ${one.name}`]), ...recipes.map((one) => [`recipe:${one}`, `recipe ${one}`])];
  const [kind, ...rest] = against.split(":");
  const other = rest.join(":");
  const own = await api(`${runPath(run)}/configuration`);
  const theirs = !other ? null : await api(kind === "run" ? `${runPath(other)}/configuration` : `recipes/${encodeURIComponent(other)}`);
  const keys = [...new Set([...Object.keys(own), ...Object.keys(theirs ?? {})])].sort();
  const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const differs = (key) => theirs !== null && text(own[key]) !== text(theirs[key]);
  const rows = theirs === null ? keys : keys.filter(differs);
  const select = el("select", { id: "against", "aria-label": "Compare the configuration with", onchange: (event) => choose(event.target.value) },
    el("option", { value: "" }, "every key"), options.map(([value, label]) => el("option", { value, selected: value === against }, `what differs from ${label}`)));
  const columns = [{ name: "Key", value: (key) => key, className: "name mono" }, { name: run, value: (key) => text(own[key]), className: "name mono" }];
  if (theirs) columns.push({ name: other, value: (key) => text(theirs[key]), className: "name mono" });
  const none = theirs && !rows.length ? el("p", {}, "They are the same.") : table(columns, rows, { caption: "Configuration" });
  return [el("div", { className: "toolbar" }, select, el("span", { className: "soft" }, theirs ? `${plural(rows.length, "key")} of ${keys.length} differ` : plural(rows.length, "key"))), none];
}

export async function system(run) {
  const { provenance, times, wall_s: wall } = await api(`${runPath(run)}/system`);
  const facts = Object.entries(provenance).filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length));
  const pair = (caption, first, second, rows) => table([{ name: first, value: ([key]) => key }, { name: second, value: ([, value]) => value, className: "name", show: ([, value]) => (Array.isArray(value) ? value.join(", ") : String(value)) }], rows, { caption });
  if (!facts.length && wall === null) return [el("p", { className: "soft" }, "Versions, machine and times are written when the run ends.")];
  return [el("h2", { className: "hidden" }, "Where it ran"), el("div", { className: "grid" },
    el("div", { className: "card" }, el("h3", {}, "Versions and machine"), pair("Versions and machine", "What", "Is", facts)),
    Object.keys(times).length > 0 && el("div", { className: "card" }, el("h3", {}, `Time: ${duration(wall)}`), table([{ name: "Phase", value: ([phase]) => phase }, { name: "Seconds", value: ([, s]) => s, show: ([, s]) => short(s), num: true }], Object.entries(times), { caption: "Time by phase" })))].filter(Boolean);
}

export async function files(run) {
  const rows = await api(`${runPath(run)}/files`);
  return [table([
    { name: "File", value: (row) => row.name, className: "name mono" }, { name: "Size", value: (row) => row.bytes, show: (row) => bytes(row.bytes), num: true },
    { name: "Changed", value: (row) => row.changed, show: (row) => when(row.changed), num: true },
  ], rows, { caption: "Files" })];
}

// An evaluation: what it measured, what went wrong, and every problem.
export function scores({ metrics, problems: rows, damaged }, run) {
  const interval = (row) => `95 % from ${percent(row.low)} to ${percent(row.high)}`;
  const last = metrics.pass.at(-1);
  const six = metrics.behaviour;
  const curve = (title, points) => points.length > 1 && chart({ title, x: "k", y: "share of problems", xs: points.map((p) => p.k), low: 0, high: 1, series: [
    { label: title, values: points.map((p) => p.mean), kind: "line" }, { label: "95 %", values: points.map((p) => p.low), kind: "guide" }, { label: "95 %", values: points.map((p) => p.high), kind: "guide" }] });
  const errors = Object.entries(metrics.errors);
  return [
    el("p", { className: "verdict" }, `${run} solves ${percent(metrics.avg.mean)} of ${plural(metrics.problems, "problem")} (${interval(metrics.avg)}), over ${plural(metrics.samples, "sample")}${damaged ? `; ${plural(damaged, "damaged line")} left out` : ""}.`),
    el("div", { className: "tiles" },
      tile("avg@k", percent(metrics.avg.mean), interval(metrics.avg)), metrics.maj && tile("maj@k", percent(metrics.maj.mean), interval(metrics.maj)), tile(`pass@${last.k}`, percent(last.mean), interval(last)),
      tile("Uses code", percent(six.code_ratio), "of the trajectories"), tile("Calls that pass", percent(six.code_pass_ratio), "ended without an error"),
      tile("First call", six.first_call ? short(six.first_call.mean) : "–", `${metrics.unit ?? "tokens"} into the response, mean`), tile("Tokens a problem", number(Math.round(metrics.tokens_a_problem)), `${short(metrics.sandbox_s_a_problem)} s in the sandbox`)),
    el("h2", { className: "hidden" }, "Accuracy and errors"),
    el("div", { className: "grid" }, curve("pass@k", metrics.pass), curve("maj@k", metrics.majority),
      errors.length > 0 && el("div", { className: "card" }, el("h3", {}, "Calls that went wrong"), table([
        { name: "Error", value: ([error]) => error, show: ([error]) => el("a", { href: link("/trajectories", { run, error }) }, error) }, { name: "Calls", value: ([, count]) => count, show: ([, count]) => number(count), num: true }], errors, { caption: "Calls that went wrong" }))),
    section("Problems", table([
      problem(run), { name: "Samples", value: (row) => row.n, num: true }, { name: "Solved", value: (row) => row.c, num: true }, { name: "Share", value: (row) => row.c / row.n, show: (row) => percent(row.c / row.n), num: true },
      { name: "Majority", value: (row) => row.majority, show: (row) => percent(row.majority, 0), num: true }, { name: "Tokens", value: (row) => row.tokens, show: (row) => short(row.tokens), num: true }, { name: "Sandbox s", value: (row) => row.sandbox_s, show: (row) => short(row.sandbox_s), num: true },
    ], rows, { caption: "Problems, hardest first" })),
  ];
}
