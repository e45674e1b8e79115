// Elements are built, never parsed: what a model wrote only ever becomes a text node.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("aria-") && typeof value === "boolean") made.setAttribute(name, String(value));
    else if (value === undefined || value === null || value === false) continue;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const number = (value, digits = 2) =>
  value === null || value === undefined ? "–" : minus(Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits));

// A figure with the minus sign of print for JavaScript's hyphen.
export const minus = (figure) => figure.replaceAll("-", "−");

export const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

// Where tabs do not fit beside each other: the chosen one into view, and the page stays where it is.
export function showTab(strip) {
  const chosen = strip.querySelector("[aria-selected=true]");
  strip.scrollLeft = chosen.offsetLeft - strip.offsetLeft - (strip.clientWidth - chosen.offsetWidth) / 2;
}

// Only what is in view is in the page. `draw(item, index)` makes a row; `load(offset)` resolves to a page of items.
export class VirtualList {
  constructor(box, inside, { height, page, load, draw }) {
    Object.assign(this, { box, inside, height, page, load, draw, total: 0, pages: new Map(), generation: 0 });
    box.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(box);
  }

  // Forget what is known; with `keep`, old rows stay on screen until the new ones arrive. False: a later reset has won.
  async reset(keep = false) {
    const generation = ++this.generation;
    if (!keep) {
      this.box.scrollTop = 0;
      this.pages.clear();
    }
    const first = Math.floor(this.box.scrollTop / this.height / this.page);
    const last = Math.floor((this.box.scrollTop + this.box.clientHeight) / this.height / this.page);
    const fresh = new Map();
    for (let at = first; at <= last; at++) await this.fetch(at, fresh);
    if (generation !== this.generation) return false;
    this.pages = fresh;
    this.paint();
    return true;
  }

  async fetch(at, into = this.pages) {
    const generation = this.generation;
    into.set(at, null);
    let total, rows;
    try {
      ({ total, rows } = await this.load(at * this.page, this.page));
    } catch (error) {
      into.delete(at); // it is asked for again when it is next in view
      throw error;
    }
    if (generation !== this.generation) return;
    this.total = total;
    into.set(at, rows);
  }

  async item(index) {
    const at = Math.floor(index / this.page);
    if (!this.pages.get(at)) await this.fetch(at);
    return this.pages.get(at)?.[index % this.page];
  }

  reveal(index) {
    const top = index * this.height;
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.box.scrollTop = top + this.height - clientHeight;
  }

  schedule() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = undefined;
      this.paint();
    });
  }

  paint() {
    this.inside.style.height = `${this.total * this.height}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - 4);
    const last = Math.min(this.total, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + 4);
    const rows = [];
    for (let i = first; i < last; i++) {
      const at = Math.floor(i / this.page);
      if (!this.pages.has(at)) this.fetch(at).then(() => this.schedule(), () => {}); // the page says elsewhere when the server is gone
      const item = this.pages.get(at)?.[i % this.page];
      if (!item) continue;
      const row = this.draw(item, i);
      row.style.top = `${i * this.height}px`;
      rows.push(row);
    }
    this.inside.replaceChildren(...rows);
  }
}
