// What every page has: the server's answers, notices, theme, keyboard help, the address.
import { el } from "./dom.js";

export const $ = (id) => document.getElementById(id);

export class Refused extends Error {}

export async function api(path, parameters = {}) {
  const given = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  const answer = await fetch(`/api/${path}?${given}`);
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(typeof data.detail === "string" ? data.detail : `the server answered ${answer.status}`);
  return data;
}

export const runPath = (name) => `runs/${encodeURIComponent(name)}`;
export const link = (page, parameters) => `${page}?${new URLSearchParams(Object.entries(parameters).filter(([, v]) => v !== "" && v !== null && v !== undefined))}`;

export function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

export const guarded = (work) => async (...given) => {
  try {
    const result = await work(...given);
    say("");
    return result;
  } catch (error) {
    if (error instanceof Refused) say(error.message);
    else if (error instanceof TypeError && /fetch|network/i.test(error.message)) say("The server does not answer. Is solostream view still running?");
    else throw error;
    return undefined;
  }
};

// `work` every `ms` while the page is looked at; a failure is said and tried again.
export async function every(ms, work) {
  const safe = guarded(work);
  for (;;) {
    await new Promise((done) => setTimeout(done, ms));
    if (!document.hidden) await safe();
  }
}

export function name(title) {
  document.title = `${title} · solostream`;
}

// The address says what is shown: `push` makes a step that the back button undoes.
export function remember(parts, push = false) {
  const next = link(location.pathname, parts);
  if (next === location.pathname + location.search) return;
  history[push ? "pushState" : "replaceState"](null, "", next);
}

export const given = () => Object.fromEntries(new URLSearchParams(location.search));

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
  try { next ? localStorage.setItem("theme", next) : (next = localStorage.getItem("theme")) && theme(next); } catch { /* storage is off: the choice lasts for this page */ }
  document.dispatchEvent(new Event("theme"));
}

const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark" ||
  (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);

// `keys`: [what is pressed, what it does] for the help; `actions`: key -> what to do.
export function furnish(keys, actions) {
  theme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme"))); // a canvas does not follow by itself
  const all = [...keys, ["t", "dark or light"], ["?", "this help"]];
  $("keys").append(el("h2", {}, "Keyboard"), el("table", {}, all.map(([key, what]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, what)))),
    el("form", { method: "dialog" }, el("button", {}, "Close")));
  const known = { ...actions, t: () => theme(dark() ? "light" : "dark"), "?": () => $("keys").showModal() };
  $("theme").addEventListener("click", known.t);
  $("help").addEventListener("click", known["?"]);
  document.addEventListener("keydown", guarded(async (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    if (event.target.matches("input, select, textarea")) return;
    const action = known[event.key];
    if (!action) return;
    event.preventDefault();
    await action();
  }));
}
