// Curves over steps: hover, zoom, smoothing, several runs over each other. Drawn by uPlot (vendor/, MIT).
import { el, minus, number } from "./dom.js";
import { api, runPath } from "./page.js";

const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [1, 4]];
const WHOLE = [1, 2, 5].flatMap((n) => [1, 10, 100, 1e3, 1e4, 1e5, 1e6].map((ten) => n * ten)).sort((a, b) => a - b);
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const resolved = (name) => { // light-dark(…) as the one colour that it is now: a canvas does not know the function
  const probe = document.body.appendChild(el("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

// The logged numbers of one run, kept up to date a row at a time.
export class Logged {
  constructor(run) {
    Object.assign(this, { run, phases: {}, born: null });
  }

  // True when there is something new.
  async refresh() {
    const seen = Object.fromEntries(Object.entries(this.phases).map(([phase, { length }]) => [phase, length]));
    const { born, phases } = await api(`${runPath(this.run)}/metrics`, seen);
    let news = false;
    if (born !== this.born && this.born !== null) { // written anew
      this.phases = {};
      this.born = null;
      return this.refresh();
    }
    this.born = born;
    for (const [phase, { start, columns }] of Object.entries(phases)) {
      const own = start && this.phases[phase] ? this.phases[phase] : (this.phases[phase] = { length: 0, columns: {} });
      const added = columns.step?.length ?? 0;
      if (!added) continue;
      for (const name of Object.keys(columns)) own.columns[name] ??= Array(own.length).fill(null);
      for (const [name, column] of Object.entries(own.columns)) column.push(...(columns[name] ?? Array(added).fill(null)));
      own.length += added;
      news = true;
    }
    return news;
  }

  // [steps, values] of a curve, without the steps that did not write it; null when no step did.
  points({ phase, key }) {
    const { columns } = this.phases[phase] ?? { columns: {} };
    const values = columns[key];
    if (!values) return null;
    const known = values.map((value, i) => i).filter((i) => values[i] !== null);
    return known.length ? [known.map((i) => columns.step[i]), known.map((i) => values[i])] : null;
  }
}

// Exponential moving average, bias-corrected: `share` of the weight stays with the past.
export function smooth(values, share) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}

// One picture of some curves: a figure whose caption says in numbers what the picture shows.
export class Curves {
  // `view`: what all charts of a page share: { smoothing, from, to, zoomed(from, to) }.
  constructor(chart, view) {
    Object.assign(this, { chart, view, plot: null, lines: [], dirty: true });
    this.box = el("div", { className: "plot" });
    this.caption = el("figcaption", { className: "legend" });
    this.figure = el("figure", { className: "card", "aria-label": `${chart.title}, ${chart.unit}` }, el("h3", {}, chart.title), this.box, this.caption);
    new ResizeObserver(() => this.plot && this.box.clientWidth && this.plot.setSize({ width: this.box.clientWidth, height: 220 })).observe(this.box);
    document.addEventListener("theme", () => this.figure.isConnected && !this.figure.hidden && this.draw());
  }

  // `runs`: Logged, the page's own first. False: none of them wrote any of these curves.
  fill(runs) {
    const lines = runs.flatMap((logged, r) => this.chart.curves.map((curve, c) => ({ logged, curve, r, c, points: logged.points(curve) })));
    this.several = runs.length > 1;
    this.lines = lines.filter((line) => line.points);
    this.figure.hidden = !this.lines.length;
    if (this.lines.length) this.draw();
    return this.lines.length > 0;
  }

  draw() {
    const { uPlot } = window;
    const { smoothing, from, to } = this.view;
    const name = (line) => (this.several ? `${line.logged.run}${this.chart.curves.length > 1 ? `, ${line.curve.label}` : ""}` : line.curve.label);
    const colour = (line) => resolved(`--series-${1 + ((this.several ? line.r : line.c) % 6)}`);
    const [ink, grid] = [resolved("--soft"), resolved("--line")];
    const shown = this.lines.map((line) => [line.points[0], smoothing ? smooth(line.points[1], smoothing) : line.points[1]]);
    const data = uPlot.join(shown);
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid }, font: `12px ${css("--sans")}`, labelFont: `12px ${css("--sans")}`, labelSize: 18 };
    this.plot?.destroy();
    this.plot = new uPlot({
      width: Math.max(this.box.clientWidth, 240), height: 220, legend: { show: false },
      cursor: { sync: { key: "steps", scales: ["x", null] }, drag: { x: true, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: (u, low, high) => (high > low ? [low, high] : [low - 1, high + 1]) },
        y: { range: (u, low, high) => span(low, high, this.chart.share) },
      },
      axes: [{ ...axis, label: "step", size: 36, incrs: WHOLE }, { ...axis, label: this.chart.unit, size: 56, values: (u, ticks) => ticks.map(short) }],
      series: [{}, ...this.lines.map((line) => ({
        stroke: colour(line), width: 2, spanGaps: true, dash: this.several ? DASHES[line.c % DASHES.length] : undefined,
        points: { show: line.points[0].length < 40, size: 6, fill: colour(line) },
      }))],
      hooks: {
        setCursor: [(u) => this.say(u.cursor.idx ?? null, data, shown)],
        setSelect: [(u) => u.select.width > 4 && this.view.zoomed(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"))],
      },
    }, data, this.box);
    this.plot.over.addEventListener("dblclick", () => this.view.zoomed(null, null));
    if (from !== null || to !== null) this.plot.setScale("x", { min: from ?? data[0][0], max: to ?? data[0].at(-1) });
    this.box.querySelector("canvas").setAttribute("role", "img");
    this.box.querySelector("canvas").setAttribute("aria-label", this.lines.map((line, i) => `${name(line)}: ${ends(shown[i])}`).join("; "));
    this.values = this.lines.map((line) => {
      const swatch = el("i", { className: "swatch" });
      swatch.style.background = colour(line);
      const value = el("b", { className: "num" });
      this.caption.append(el("span", {}, swatch, `${name(line)} `, value));
      return value;
    });
    this.caption.replaceChildren(...[...this.caption.children].slice(-this.lines.length));
    this.say(null, data, shown);
  }

  // Under the pointer: the values there; else from where to where each curve went.
  say(index, data, shown) {
    if (!this.values) return;
    this.values.forEach((box, i) => {
      const at = index === null ? null : data[i + 1][index];
      box.textContent = index === null ? ends(shown[i]) : `${short(at ?? null)} at step ${data[0][index]}`;
    });
  }
}

export const short = (value) => (value === null ? "–" : value === 0 || Math.abs(value) >= 1000 ? number(Math.round(value)) : Number.isInteger(value) ? number(value) : Math.abs(value) < 0.001 ? minus(value.toExponential(1)) : minus(String(Number(value.toPrecision(3)))));
const ends = ([, values]) => (values.length > 1 ? `${short(values[0])} → ${short(values.at(-1))}` : short(values[0]));

function span(low, high, share) {
  if (low === null || high === null) return [0, 1];
  if (share) return [Math.min(0, low), Math.max(1, high)];
  if (low >= 0 && low < 0.6 * high) low = 0; // from zero, unless that would flatten the curve
  const margin = (high - low || Math.abs(high) || 1) * 0.06;
  return [low === 0 ? 0 : low - margin, high + margin];
}

// Points, bars or lines over other numbers than steps. `series`: { label, values, kind: "line" | "dots" | "bars" | "guide" }.
export function chart({ title, x, y, xs, series, low = null, high = null, note }) {
  const { uPlot } = window;
  const box = el("div", { className: "plot" });
  const said = series.filter((one) => one.kind !== "guide").map((one) => el("span", {}, one.label));
  const keys = said.map((text, i) => { const swatch = el("i", { className: "swatch" }); swatch.style.background = `var(--series-${1 + i})`; return el("span", {}, swatch, text); });
  const figure = el("figure", { className: "card", "aria-label": `${title}: ${y} by ${x}` }, el("h3", {}, title), note && el("p", {}, note), box, el("figcaption", { className: "legend" }, keys));
  const draw = () => {
    box.replaceChildren();
    const [ink, grid] = [resolved("--soft"), resolved("--line")];
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid }, font: `12px ${css("--sans")}`, labelFont: `12px ${css("--sans")}`, labelSize: 18 };
    const kinds = {
      line: () => ({ points: { show: xs.length < 40, size: 6 } }), dots: () => ({ paths: () => null, points: { show: true, size: 9 } }),
      guide: () => ({ stroke: ink, dash: [4, 4], points: { show: false } }), bars: (stroke) => ({ paths: uPlot.paths.bars({ size: [0.9] }), fill: stroke, points: { show: false } }),
    };
    const plot = new uPlot({
      width: Math.max(box.clientWidth, 240), height: 220, legend: { show: false }, cursor: { drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { range: (u, from, to) => [low ?? from, high ?? (to || 1) * 1.05] } },
      axes: [{ ...axis, label: x, size: 36, ...(["step", "k"].includes(x) ? { incrs: WHOLE } : {}) }, { ...axis, label: y, size: 56, values: (u, ticks) => ticks.map(short) }],
      series: [{}, ...series.map((one, i) => { const stroke = resolved(`--series-${1 + (i % 6)}`); return { stroke, width: 2, spanGaps: true, ...kinds[one.kind](stroke) }; })],
      hooks: { setCursor: [(u) => series.filter((one) => one.kind !== "guide").forEach((one, i) => {
        const at = u.cursor.idx;
        said[i].textContent = at === null || at === undefined ? one.label : `${one.label}: ${short(one.values[at] ?? null)} at ${short(xs[at])}`;
      })] },
    }, [xs, ...series.map((one) => one.values)], box);
    const canvas = box.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", series.filter((one) => one.kind !== "guide").map((one) => `${one.label}: ${one.values.map((value, i) => `${short(value)} at ${short(xs[i])}`).slice(0, 24).join(", ")}`).join("; "));
    return plot;
  };
  let plot = null;
  new ResizeObserver(() => { if (!box.clientWidth) return; plot ? plot.setSize({ width: box.clientWidth, height: 220 }) : (plot = draw()); }).observe(box);
  document.addEventListener("theme", () => { if (figure.isConnected) plot = draw(); });
  return figure;
}
