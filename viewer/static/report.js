"use strict";
// Values under the pointer, sortable tables, dark and light. The page is complete without it.
const SVG = "http://www.w3.org/2000/svg";

const shown = (value) => (value === null ? "–" : (Math.abs(value) >= 1000 || Number.isInteger(value) ? value.toLocaleString("en", { maximumFractionDigits: 1 }) : value.toPrecision(4)).replaceAll("-", "−"));

for (const chart of document.querySelectorAll("[data-points]")) {
  const { x, series } = JSON.parse(chart.dataset.points);
  const [, , width, height] = chart.getAttribute("viewBox").split(" ").map(Number);
  const card = chart.parentElement;
  const tip = document.createElement("div");
  tip.className = "tip";
  const cross = document.createElementNS(SVG, "line");
  cross.setAttribute("class", "cross");
  const leave = () => { tip.remove(); cross.remove(); };
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    const near = series.map(([name, , points]) => [name, points.reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best))]);
    const [place, value] = near.map(([, p]) => p).reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best));
    for (const [name, number] of [["x1", place], ["x2", place], ["y1", 12], ["y2", height - 38]]) cross.setAttribute(name, number);
    chart.append(cross);
    tip.textContent = [`${x} ${shown(value)}`, ...near.filter(([, p]) => p[1] === value).map(([name, p]) => `${name}  ${shown(p[2])}`)].join("\n");
    card.append(tip);
    const inside = card.getBoundingClientRect();
    const left = box.left - inside.left + (place / width) * box.width;
    tip.style.top = `${box.top - inside.top + 14}px`;
    tip.style.left = `${left > inside.width / 2 ? left - tip.offsetWidth - 10 : left + 10}px`;
  });
}

for (const head of document.querySelectorAll("table.data thead th")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const down = (head.dataset.down = head.dataset.down === "1" ? "0" : "1") === "1";
    const key = (row) => { const text = row.cells[column].dataset.value ?? row.cells[column].textContent; return text !== "" && !isNaN(text) ? Number(text) : text; };
    const rows = [...body.rows].sort((a, b) => (key(a) > key(b) ? 1 : key(a) < key(b) ? -1 : 0) * (down ? -1 : 1));
    body.append(...rows);
  });
}

for (const link of document.querySelectorAll('a[href^="#t-"]'))
  link.addEventListener("click", () => { for (let box = document.getElementById(link.hash.slice(1)); box; box = box.parentElement.closest("details")) box.open = true; });

const themes = document.querySelector("header button");
themes.addEventListener("click", () => {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
