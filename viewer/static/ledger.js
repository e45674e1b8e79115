// Token views: the text coloured by what is known of each token, and the ledger as a table.
import { el, number, VirtualList } from "./dom.js";

const COLOURS = {
  logprob: "How unlikely the sampled token was",
  advantage: "Advantage that its tokens were trained with",
  version: "Policy version that sampled it",
  mask: "Sampled by the policy, or forced",
};
const STRONG = 0.5; // the ink on it keeps a contrast of 4.5, light and dark
const wash = (colour, share) => `color-mix(in srgb, var(--${colour}) ${Math.round(share * 100)}%, transparent)`;

// The advantage of token i: of its turn where the turns differ, else of the whole trajectory; null before any update.
function advantageAt(body, i) {
  const { advantage, advantages } = body.row;
  if (!advantages) return advantage;
  const spoken = body.record.turns.filter((turn) => turn.role === "assistant");
  return advantages[spoken.findIndex((turn) => i >= turn.start && i < turn.end)] ?? null;
}

function colour(kind, body, i) {
  const { logprobs, versions, action_mask: mask } = body.record;
  if (!mask[i]) return kind === "mask" ? wash("series-6", 0.16) : null;
  if (kind === "mask") return wash("series-1", 0.24);
  if (kind === "version") return wash(`series-${1 + ((versions[i] % 5) + 5) % 5}`, 0.3);
  if (kind === "logprob") return wash("bad", Math.min(-logprobs[i] / 5, 1) * STRONG);
  const advantage = advantageAt(body, i);
  return advantage === null ? null : wash(advantage >= 0 ? "good" : "bad", Math.min(Math.abs(advantage) / 2, 1) * STRONG);
}

function scale(kind, body) {
  if (kind === "logprob") return bar(`linear-gradient(90deg, transparent, ${wash("bad", STRONG)})`, "certain", "5 nats or more");
  if (kind === "advantage") {
    if (body.row.advantage === null) return el("span", { className: "legend" }, "No update has used this trajectory.");
    return bar(`linear-gradient(90deg, ${wash("bad", STRONG)}, transparent, ${wash("good", STRONG)})`, "−2", "+2");
  }
  const names = kind === "mask" ? [["series-1", "policy"], ["series-6", "forced"]]
    : [...new Set(body.record.versions)].filter((v) => v >= 0).slice(0, 12).map((v) => [`series-${1 + (v % 5)}`, `version ${v}`]);
  return el("span", { className: "legend" }, names.map(([name, text]) => {
    const box = el("i");
    box.style.background = wash(name, 0.6);
    return el("span", {}, box, text);
  }));
}

function bar(background, low, high) {
  const box = el("i");
  box.style.background = background;
  return el("span", { className: "scale" }, low, box, high);
}

export function tokens(body, kind, choose) {
  const { token_ids: ids, action_mask: mask, logprobs, versions } = body.record;
  const probe = el("div", { className: "probe", role: "status" }, "Point at a token");
  const field = el("div", { className: `tokens ${body.pieces ? "" : "ids"}` });
  const spans = ids.map((id, i) => {
    const span = el("span", { className: mask[i] ? "" : "forced", "data-i": i }, body.pieces ? body.pieces[i] : String(id));
    const background = colour(kind, body, i);
    if (background) span.style.background = background;
    return span;
  });
  field.append(...spans);
  field.addEventListener("mouseover", (event) => {
    const i = event.target.dataset?.i;
    if (i === undefined) return;
    const facts = [`token ${i}`, `id ${ids[i]}`];
    if (mask[i]) facts.push(`logprob ${number(logprobs[i], 3)}`, `p = ${number(Math.exp(logprobs[i]), 3)}`, `version ${versions[i]}`);
    else facts.push("forced: not sampled, not trained on");
    const advantage = mask[i] ? advantageAt(body, i) : null;
    if (advantage !== null) facts.push(`advantage ${number(advantage, 3)}`);
    probe.textContent = facts.join("  ·  ");
  });
  const select = el("select", { id: "colour", "aria-label": "Colour by", onchange: (event) => choose(event.target.value) },
    Object.entries(COLOURS).map(([name, text]) => el("option", { value: name, selected: name === kind }, text)));
  return [
    el("div", { className: "toolbar" }, select, scale(kind, body), probe),
    body.pieces ? null : el("p", { className: "soft" }, "No tokenizer was found with this run, so ids are shown. Give one with --tokenizer."),
    field,
  ];
}

export function ledger(body) {
  const { token_ids: ids, action_mask: mask, logprobs, versions, turns } = body.record;
  const role = (i) => turns.find((turn) => i >= turn.start && i < turn.end)?.role ?? "";
  const inside = el("div", { className: "ledger-rows" });
  const box = el("div", { className: "ledger", tabindex: 0 }, inside);
  const list = new VirtualList(box, inside, {
    height: 24, page: 500,
    load: async (offset, limit) => ({ total: ids.length, rows: ids.slice(offset, offset + limit) }),
    draw: (id, i) => el("div", { className: `entry ${mask[i] ? "" : "forced"}` },
      [i, id, body.pieces ? JSON.stringify(body.pieces[i]) : "", mask[i] ? "sampled" : "forced", number(logprobs[i], 4),
        versions[i] < 0 ? "–" : versions[i], role(i)].map((cell) => el("span", {}, String(cell)))),
  });
  list.reset();
  const head = ["position", "id", "text", "mask", "logprob", "version", "turn"].map((name) => el("span", {}, name));
  return el("div", { className: "ledger-frame" }, el("div", { className: "ledger-head" }, head), box);
}
