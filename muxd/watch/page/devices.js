// Each device's pool as a bar of blocks, and beside it what each model may hold, its weights, its share of now.

import { colour, faded, hatch } from "./colours.js";
import { element, find, keyed, put, sized, style, write } from "./dom.js";
import { bytes, percent } from "./format.js";
import { ink } from "./theme.js";

const CELL = 10, GAPS = 2, ROWS = 6; // pixels, pixels, cells on top of each other
const FLASH = 600, STEP = 120; // milliseconds that a changed cell shines, and between two looks of it
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Devices {
  draw(picture) {
    const devices = Object.values(picture.devices);
    put(find("#devices"), "data-many", devices.length > 2);
    keyed(find("#devices"), devices, (device) => device.name, (device) => new Card(device).node,
      (node, device) => node.card.draw(device, devices.length));
  }
}

class Card {
  constructor(device) {
    this.map = new Map_();
    this.title = element("h3", {}, device.name);
    this.about = element("p", { class: "hint" });
    this.share = element("div", { class: "stack thin", role: "img" });
    this.accounts = element("ul", { class: "accounts" });
    this.weights = element("div", { class: "stack", role: "img" });
    this.weightsText = element("span", { class: "hint" });
    this.shareText = element("span", { class: "hint" });
    this.node = element("article", { class: "card device" },
      element("div", { class: "head" }, this.title, this.about), this.map.node, this.accounts,
      element("div", { class: "beside" }, element("span", { class: "label" }, "Weights"), this.weights, this.weightsText),
      element("div", { class: "beside" }, element("span", { class: "label" }, "In use now"), this.share, this.shareText));
    this.node.card = this;
  }

  draw(device, count) {
    const free = device.runs.filter(([, kind]) => kind === "free").reduce((sum, run) => sum + run[2], 0);
    write(this.about, `${bytes(device.blocks * device.block_bytes)} pool · ${percent(free / device.blocks)} free`);
    this.map.draw(device, count > 2 ? 4 : ROWS);
    this.#accounts(device);
    this.#weights(device);
    this.#share(device);
  }

  #accounts(device) {
    const part = (blocks) => `${((100 * blocks) / device.blocks).toFixed(2)}%`;
    keyed(this.accounts, Object.entries(device.accounts), ([name]) => name,
      ([name]) => element("li", {}, element("span", { class: "name", title: name }),
        element("span", { class: "track", role: "img" }, ...["within", "over", "cached", "tick", "line"].map(
          (what) => element("i", { class: what }))), element("span", { class: "amount" })),
      (node, [name, account]) => {
        const [label, track, amount] = node.children;
        const [within, over, cached, tick, line] = track.children;
        const size = (blocks) => bytes(blocks * device.block_bytes);
        style(node, "--colour", colour(name));
        write(label, name);
        style(within, "width", part(Math.min(account.held, account.quota)));
        style(over, "width", part(Math.max(0, account.held - account.quota)));
        style(cached, "width", part(account.cached));
        style(tick, "left", part(account.guarantee));
        style(line, "left", part(account.quota));
        tick.hidden = !account.guarantee;
        const borrowed = Math.max(0, account.held - account.quota);
        put(node, "data-lent", borrowed > 0);
        write(amount, size(account.held) + (borrowed ? `, ${size(borrowed)} borrowed` : ""));
        put(track, "aria-label", `${name} holds ${size(account.held)}, of which ${size(borrowed)} borrowed; ` +
          `cached ${size(account.cached)}, guarantee ${size(account.guarantee)}, quota ${size(account.quota)}`);
        put(track, "title", track.getAttribute("aria-label"));
      });
  }

  #weights(device) {
    const rows = device.weights;
    const all = rows.reduce((sum, row) => sum + row.bytes, 0);
    keyed(this.weights, rows, (row) => row.model, (row) => element("i", { title: row.model }, element("b")), (node, row) => {
      style(node, "--colour", colour(row.model));
      style(node, "flex-grow", String(row.bytes / Math.max(1, all)));
      put(node, "class", row.state);
      style(node, "--done", `${100 * (row.done ?? 1)}%`);
      write(node.firstElementChild, row.state === "loading" ? percent(row.done ?? 1) : "");
      put(node, "title", `${row.model}: ${bytes(row.bytes)} ${row.state}`);
    });
    const sum = (state) => rows.filter((row) => row.state === state).reduce((total, row) => total + row.bytes, 0);
    const said = ["resident", "parked", "loading"].filter((state) => sum(state)).map((state) => `${bytes(sum(state))} ${state}`);
    write(this.weightsText, said.join(", ") || "none");
    put(this.weights, "aria-label", `weights: ${rows.map((row) => `${row.model} ${row.state}`).join(", ") || "none"}`);
  }

  #share(device) {
    const shares = {};
    for (const [model, , , share] of device.flights) shares[model] = (shares[model] ?? 0) + share;
    const rows = Object.entries(shares);
    const all = rows.reduce((sum, [, share]) => sum + share, 0);
    keyed(this.share, rows, ([model]) => model, () => element("i"), (node, [model, share]) => {
      style(node, "--colour", colour(model));
      style(node, "width", `${Math.min(100, share)}%`);
      put(node, "title", `${model}: ${share} % of the device`);
    });
    write(this.shareText, `${Math.min(100, all)} %`);
    put(this.share, "aria-label", rows.map(([model, share]) => `${model} ${share} percent`).join(", ") || "idle");
  }
}

// The pool itself: cells of as many blocks as are needed, filled column by column in the order of the runs.
class Map_ {
  constructor() {
    this.canvas = element("canvas", { role: "img" });
    this.tip = element("p", { class: "tip", hidden: true });
    this.node = element("div", { class: "map" }, this.canvas, this.tip);
    this.cells = [];
    this.changed = [];
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    new ResizeObserver(() => this.device && this.draw(this.device, this.rows)).observe(this.node);
    // What is scrolled away is not painted.
    new IntersectionObserver(([seen]) => {
      this.away = !seen.isIntersecting;
      if (!this.away && this.device) this.#paint();
    }).observe(this.node);
  }

  draw(device, rows) {
    const width = this.node.clientWidth;
    if (!width) return;
    Object.assign(this, { device, rows });
    const columns = Math.max(1, Math.min(Math.floor((width + GAPS) / (CELL + GAPS)), Math.ceil(device.blocks / rows)));
    this.step = (width + GAPS) / columns;
    this.each = device.blocks / Math.min(device.blocks, columns * rows);
    const cells = spread(device.runs, Math.min(device.blocks, columns * rows));
    const now = performance.now();
    if (cells.length === this.cells.length && !calm.matches) {
      cells.forEach((run, index) => {
        const before = this.cells[index];
        if (run[0] !== before[0] || run[1] !== before[1]) this.changed[index] = now;
      });
    } else this.changed = [];
    this.cells = cells;
    this.#paint();
    const text = device.runs.map(([model, kind, blocks]) => `${model || ""} ${kind} ${percent(blocks / device.blocks)}`);
    put(this.canvas, "aria-label", `pool of ${device.name}: ${text.join(", ")}`);
  }

  #paint() {
    if (this.away) return;
    const width = this.node.clientWidth, height = this.rows * (CELL + GAPS) - GAPS;
    const { canvas } = this;
    const ratio = sized(canvas, width, height);
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const fills = new Map();
    const empty = ink("cell"), shine = ink("shine"), now = performance.now();
    let shines = false;
    this.cells.forEach((run, index) => {
      const [x, y, w, h] = this.#place(index).map((value) => value * ratio);
      const name = `${run[0]} ${run[1]}`;
      if (!fills.has(name)) fills.set(name, fill(context, run, ratio, empty));
      context.fillStyle = fills.get(name);
      context.beginPath();
      context.roundRect(x, y, w, h, 2 * ratio);
      context.fill();
      const age = now - (this.changed[index] ?? -FLASH);
      if (age < FLASH) {
        shines = true;
        context.globalAlpha = 0.3 * (1 - age / FLASH);
        context.fillStyle = shine;
        context.fill();
        context.globalAlpha = 1;
      }
    });
    if (shines && !this.shining) {
      this.shining = true;
      setTimeout(() => requestAnimationFrame(() => {
        this.shining = false;
        this.#paint();
      }), STEP);
    }
  }

  #place(index) {
    const column = Math.floor(index / this.rows), row = index % this.rows;
    return [column * this.step, row * (CELL + GAPS), this.step - GAPS, CELL];
  }

  #point(event) {
    const column = Math.floor(event.offsetX / this.step), row = Math.floor(event.offsetY / (CELL + GAPS));
    const run = this.cells[column * this.rows + Math.min(row, this.rows - 1)];
    this.tip.hidden = !run;
    if (!run) return;
    write(this.tip, `${run[0] || "nobody"} · ${run[1]} · ${bytes(run[2] * this.device.block_bytes)}`);
    style(this.tip, "left", `${Math.min(event.offsetX + 12, this.node.clientWidth - 180)}px`);
    style(this.tip, "top", `${event.offsetY + 14}px`);
  }
}

function fill(context, [model, kind], ratio, empty) {
  if (kind === "free") return empty;
  if (kind === "borrowed") return hatch(context, colour(model), ratio);
  return kind === "cached" ? faded(colour(model), 0.32) : colour(model);
}

// One run for each cell, in proportion; whoever has a block has a cell, as far as there are some.
function spread(runs, count) {
  const total = runs.reduce((sum, run) => sum + run[2], 0) || 1;
  const parts = runs.map((run) => Math.max(1, Math.floor((run[2] * count) / total)));
  let left = count - parts.reduce((sum, part) => sum + part, 0);
  const bySize = runs.map((_, index) => index).sort((a, b) => runs[b][2] - runs[a][2]);
  for (let turn = 0; left !== 0 && turn < 10 * runs.length; turn += 1) {
    const index = bySize[turn % runs.length];
    if (left > 0) {
      const more = turn < runs.length ? Math.min(left, Math.round((runs[index][2] * count) / total) - parts[index]) : left;
      parts[index] += Math.max(0, more);
      left -= Math.max(0, more);
    } else if (parts[index] > 1) {
      const less = Math.min(-left, parts[index] - 1);
      parts[index] -= less;
      left += less;
    }
  }
  return runs.flatMap((run, index) => Array(parts[index]).fill(run)).slice(0, count);
}
