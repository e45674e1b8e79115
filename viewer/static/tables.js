// Tables that can be sorted and searched, and the small marks in them.
import { el, minus, number } from "./dom.js";

export const pill = (text, tone = "", title = "") => el("span", { className: `pill ${tone}`, ...(title && { title }) }, text);
export const status = (run) => (run.trouble ? pill("cannot be read", "bad", run.trouble) : pill(run.status, TONES[run.status], run.writer ? `last written by ${run.writer}` : ""));
export const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : minus(`${(100 * value).toFixed(digits)} %`));
const TONES = { finished: "good", running: "warn", stopped: "bad", unknown: "" };

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${number(seconds, 1)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function when(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const date = new Date(seconds * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

export const bytes = (count) => (count < 1e3 ? `${count} B` : count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`);

// `columns`: { name, value(row): what to sort by, show(row): what to see (default: the value), num: right-aligned,
// head: what the row is about, the title of its card on a phone (default: the first) }.
// `sort`: { column, down }, which `changed` hears of. Rows without a value come last.
export function table(columns, rows, { caption, sort = { column: -1, down: false }, changed } = {}) {
  const body = el("tbody");
  const head = columns.find((column) => column.head) ?? columns[0];
  const wrap = el("div", { className: "scroll", tabindex: 0, role: "region", "aria-label": caption });
  const heads = columns.map((column, i) => {
    if (!column.value) return el("th", { className: column.num ? "num" : "" }, column.name);
    const turn = () => {
      sort = { column: i, down: sort.column === i ? !sort.down : Boolean(column.num) };
      changed?.(sort);
      draw();
      heads[i].querySelector("button").focus();
    };
    return el("th", { className: column.num ? "num" : "" }, el("button", { className: "sort", onclick: turn }, column.name));
  });
  function draw() {
    const { column, down } = sort;
    heads.forEach((head, i) => columns[i].value && head.setAttribute("aria-sort", i === column ? (down ? "descending" : "ascending") : "none"));
    const of = columns[column]?.value;
    const ordered = of ? [...rows].sort((a, b) => compare(of(a), of(b), down)) : rows;
    body.replaceChildren(...ordered.map((row) => el("tr", {}, columns.map((column) => {
      const shown = (column.show ?? column.value)(row);
      const none = shown === null || shown === undefined || shown === "" || shown === false || shown === "–";
      const kind = `${column.num ? "num" : (column.className ?? "")} ${column === head ? "head" : none ? "none" : ""}`;
      return el("td", { className: kind.trim(), "data-label": column.name }, none ? "–" : shown);
    }))));
  }
  draw();
  wrap.append(el("table", { className: "data" }, el("caption", { className: "hidden" }, caption), el("thead", {}, el("tr", {}, heads)), body));
  return wrap;
}

function compare(a, b, down) {
  const none = (x) => x === null || x === undefined || x === "";
  if (none(a) || none(b)) return none(a) - none(b);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}
