// The conversation: what was asked, said, run and printed.
import { el, number, plural } from "./dom.js";
import { python } from "./python.js";

const WHO = { system: "System", user: "Problem", assistant: "Policy", tool: "Tool output" };

// `paint(text)` decorates all that the policy wrote, code included, and returns nodes; without it code is highlighted.
// `advantages`: one number a turn of the policy, where an update weighed its turns differently.
export function turns(record, paint, advantages = null) {
  const spoken = record.turns.filter((turn) => turn.role === "assistant");
  const weighed = (turn) => advantages?.[spoken.indexOf(turn)] ?? null;
  const paidInBetween = spoken.some((turn) => turn.reward && turn !== spoken.at(-1));
  return record.turns.map((turn, i) =>
    el("article", { className: `turn ${turn.role}`, id: `turn-${i}` },
      el("div", { className: "who" },
        el("b", {}, WHO[turn.role] ?? turn.role),
        el("span", { className: "num" }, `${plural(turn.end - turn.start, "token")}, from ${turn.start}`),
        weighed(turn) !== null && el("span", { className: "num" }, `advantage ${number(weighed(turn), 3)}`),
        paidInBetween && turn.role === "assistant" && el("span", { className: "num" }, `reward ${number(turn.reward)}`),
        turn.void && el("span", { className: "pill warn" }, "void turn")),
      el("div", { className: "body" }, turn.role === "assistant" ? said(turn, paint) : el("div", { className: "text" }, turn.text))),
  );
}

// The policy's text with each call's span replaced by a cell: code and what it did.
function said(turn, paint) {
  const parts = [];
  const points = [...turn.text]; // spans count code points, JavaScript strings do not
  const shown = paint ?? ((text) => [text]);
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
      el("span", { className: `pill ${tone}` }, execution?.error?.name ?? state)),
    el("pre", { className: "code" }, paint ? paint(source) : typeof code === "string" ? python(code) : source),
    execution && outputs(execution));
}

function outputs(execution) {
  const cut = (flag) => (flag ? el("span", { className: "tag" }, "cut to the limit") : null);
  const block = (text, tag, tone = "") =>
    text ? el("pre", { className: `out ${tone}` }, el("span", { className: "tag" }, tag), text) : null;
  return [
    block(execution.stdout, "stdout"), cut(execution.stdout_truncated),
    block(execution.result, "result"), cut(execution.result_truncated),
    block(execution.stderr, "stderr", "error"), cut(execution.stderr_truncated),
    block(execution.error && (execution.error.traceback || `${execution.error.name}: ${execution.error.message}`), "error", "error"),
    ...(execution.display ?? []).filter((shown) => /^[A-Za-z0-9+/=\s]+$/.test(shown["image/png"] ?? ""))
      .map((shown) => el("img", { src: `data:image/png;base64,${shown["image/png"]}`, alt: "figure drawn by the code" })),
  ];
}
