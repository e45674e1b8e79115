// The conversation: what was asked, said, run and printed. Turns and outputs fold.
import { el, number, plural } from "./dom.js";
import { maths as formulas } from "./maths.js";
import { python } from "./python.js";

const WHO = { system: "System", user: "Problem", assistant: "Policy", tool: "Tool output", context: "History replaced" };
const LONG = 1200; // characters of an output that is folded at first

// Mean −log π of what the policy sampled in a turn, an estimate of its entropy; null where no probabilities are known.
function uncertainty(record, turn) {
  let nats = 0, count = 0;
  for (let i = turn.start; i < turn.end; i += 1) if (record.action_mask[i]) { nats -= record.logprobs[i]; count += 1; }
  return count ? nats / count : null;
}

// `paint(text)` decorates all that the policy wrote, code included, and returns nodes; without it code is highlighted and
// formulas are drawn. `advantages`: one number a turn of the policy, where an update weighed its turns differently.
export function turns(record, { paint, advantages = null, maths = true, prefix = "turn" } = {}) {
  const spoken = record.turns.filter((turn) => turn.role === "assistant");
  const weighed = (turn) => advantages?.[spoken.indexOf(turn)] ?? null;
  const paidInBetween = spoken.some((turn) => turn.reward && turn !== spoken.at(-1));
  const plain = maths ? formulas : (text) => [text];
  return record.turns.map((turn, i) => {
    const before = record.turns[i - 1];
    const unsure = uncertainty(record, turn);
    const repeats = turn.role === "tool" && before?.executions.some(Boolean); // the cells above show it already
    return el("details", { className: `turn ${turn.role}`, id: `${prefix}-${i}`, open: !repeats },
      el("summary", { className: "who" },
        el("b", {}, repeats ? "What the policy read of it" : WHO[turn.role] ?? turn.role),
        el("span", { className: "num" }, `${plural(turn.end - turn.start, "token")}, from ${turn.start}`),
        unsure !== null && el("span", { className: "num", title: "mean −log π of its tokens" }, `${number(unsure, 2)} nats a token`),
        weighed(turn) !== null && el("span", { className: `num ${weighed(turn) >= 0 ? "up" : "down"}` }, `advantage ${number(weighed(turn), 3)}`),
        paidInBetween && turn.role === "assistant" && el("span", { className: "num" }, `reward ${number(turn.reward)}`),
        turn.void && el("span", { className: "pill warn" }, "void turn")),
      el("div", { className: "body" },
        turn.reasoning && el("details", { className: "reasoning", open: true }, el("summary", {}, `Reasoning, ${plural(turn.reasoning.length, "character")}`), el("div", { className: "text" }, plain(turn.reasoning))),
        turn.role === "assistant" ? said(turn, paint, plain) : el("div", { className: "text" }, turn.role === "tool" ? turn.text : plain(turn.text))));
  });
}

// The policy's text with each call's span replaced by a cell: code and what it did.
function said(turn, paint, plain) {
  const parts = [];
  const points = [...turn.text]; // spans count code points, JavaScript strings do not
  const shown = paint ?? plain;
  let done = 0;
  const words = (text) => text.trim() && parts.push(el("div", { className: "text" }, shown(text.replace(/^\n+|\s+$/g, ""))));
  turn.calls.forEach((call, i) => {
    words(points.slice(done, call.span[0]).join(""));
    parts.push(cell(call, turn.executions[i], points.slice(...call.span).join(""), turn.call_tokens[i], paint));
    done = call.span[1];
  });
  words(points.slice(done).join(""));
  return parts.length ? parts : el("div", { className: "text" }, "∅");
}

function cell(call, execution, source, token, paint) {
  const code = call.arguments?.code;
  const state = !execution ? (call.status === "ok" ? "not run" : call.status) : execution.status;
  const tone = state === "ok" ? "good" : execution ? "bad" : "warn";
  return el("div", { className: "cell" },
    el("div", { className: "bar" },
      el("span", {}, call.name), el("span", { className: "num" }, `token ${token}`), el("span", { className: "gap" }),
      execution && el("span", { className: "num" }, `${number(execution.duration_s * 1000, 0)} ms`),
      execution && !execution.state_kept && el("span", { className: "pill warn" }, "state lost"),
      el("span", { className: `pill ${tone}` }, state === "error" ? "failed" : state)),
    el("pre", { className: "code" }, paint ? paint(source) : typeof code === "string" ? python(code) : source),
    execution && outputs(execution));
}

// What a call gave, every part once: an error is its traceback, which is on stderr only where it is not given apart.
function outputs(execution) {
  const { error } = execution;
  const message = error ? `${error.name}: ${error.message}` : "";
  const told = error && (error.traceback.includes(error.name) ? error.traceback : [error.traceback, message].filter(Boolean).join("\n"));
  const stderr = told ? execution.stderr.replace(told.trim(), "").trim() : execution.stderr;
  const block = (text, tag, cut, tone = "") => text && el("details", { className: `out ${tone}`, open: text.length <= LONG },
    el("summary", { className: "tag" }, tag, text.length > LONG && ` ${plural(text.length, "character")}`, cut && ", cut to the limit"), el("pre", {}, text));
  return [
    block(execution.stdout, "stdout", execution.stdout_truncated),
    block(execution.result, "result", execution.result_truncated),
    block(stderr, "stderr", execution.stderr_truncated, "error"),
    block(told, "error", false, "error"),
    ...(execution.display ?? []).filter((shown) => /^[A-Za-z0-9+/=\s]+$/.test(shown["image/png"] ?? ""))
      .map((shown) => el("img", { src: `data:image/png;base64,${shown["image/png"]}`, alt: "figure drawn by the code" })),
  ];
}
