// The last minutes: each worker's batches on a line of its own, under each other by device, so that a person
// sees who ran with whom. Prefill is tall, decode is low; marks stand above.

import { colour, faded } from "./colours.js";
import { find, put, sized, style, write } from "./dom.js";
import { clock, milliseconds } from "./format.js";
import { ink } from "./theme.js";

const TOP = 22, FOOT = 20, GAP = 10;
const LATE = 0.6; // seconds behind the present, so that what is shown has been told
const SIGNS = {
  preempted: ["▼", "bad"], "quota moved": ["◆", "note"], quota: ["◆", "note"], moving: ["➜", "note"], moved: ["➜", "note"],
  replan: ["➜", "note"], "worker lost": ["✖", "bad"], "worker ready": ["●", "good"], "worker hung": ["✖", "bad"],
  "device fault": ["✖", "bad"], asleep: ["☾", "note"], woken: ["☀", "note"], loaded: ["▲", "good"], unloaded: ["▽", "note"],
};

export class Timeline {
  constructor(state) {
    this.state = state;
    this.node = find("#timeline");
    [this.canvas, this.tip] = this.node.children;
    this.span = 60;
    this.end = null; // where it was paused
    for (const button of document.querySelectorAll("[data-span]")) button.addEventListener("click", () => this.#zoom(button));
    find("#pause").addEventListener("click", () => this.#pause());
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("keydown", (event) => this.#keys(event));
    const loop = () => {
      // Scrolling that nobody can see is not drawn: a pixel is some ms of a minute, and painting takes its time.
      const due = Math.max(50, (1000 * this.span) / this.node.clientWidth, 8 * (this.took ?? 0));
      if (this.state.picture && this.end === null && !this.away && performance.now() - (this.painted ?? 0) >= due) this.#paint();
      requestAnimationFrame(loop);
    };
    requestAnimationFrame(loop);
    new ResizeObserver(() => this.state.picture && this.#paint()).observe(this.node);
    new IntersectionObserver(([seen]) => (this.away = !seen.isIntersecting)).observe(this.node);
  }

  draw(picture) {
    this.rows = rowsOf(picture);
    const text = this.rows.map((row) => row.model).join(", ");
    put(this.canvas, "aria-label", `batches of the last ${this.span} seconds by worker: ${text || "none"}`);
    write(find("#timeline-text"), summary(picture, this.#until - this.span));
    if (this.end === null) return;
    this.#paint();
  }

  get #until() {
    return this.end ?? this.state.now - LATE;
  }

  #zoom(button) {
    this.span = Number(button.dataset.span);
    for (const one of document.querySelectorAll("[data-span]")) put(one, "aria-pressed", String(one === button));
    if (this.state.picture) this.#paint();
  }

  #pause() {
    this.end = this.end === null ? this.#until : null;
    put(find("#pause"), "aria-pressed", String(this.end !== null));
    write(find("#pause"), this.end === null ? "Pause" : "Go on");
  }

  // Left and right walk through the past, plus and minus look nearer and wider.
  #keys(event) {
    const spans = [...document.querySelectorAll("[data-span]")];
    const at = spans.findIndex((one) => Number(one.dataset.span) === this.span);
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      if (this.end === null) this.#pause();
      this.end = Math.min(this.state.now - LATE, this.end + (event.key === "ArrowLeft" ? -1 : 1) * this.span * 0.1);
      this.#paint();
    } else if (event.key === "+" || event.key === "-") {
      const next = spans[at + (event.key === "+" ? -1 : 1)];
      if (next) this.#zoom(next);
    } else return;
    event.preventDefault();
  }

  #paint() {
    const began = performance.now();
    const { picture } = this.state;
    const rows = (this.rows ??= rowsOf(picture));
    const width = this.node.clientWidth;
    const line = rows.length > 24 ? 12 : rows.length > 12 ? 16 : 24;
    const groups = new Set(rows.map((row) => row.device)).size;
    const height = TOP + FOOT + rows.length * line + Math.max(0, groups - 1) * GAP + (rows.length ? 0 : line);
    const { canvas } = this;
    const ratio = sized(canvas, width, height);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const gutter = width < 560 ? 84 : 150, until = this.#until, from = until - this.span;
    const x = (time) => gutter + ((time - from) / this.span) * (width - gutter);
    this.scale = { gutter, from, width, line };
    this.#grid(context, x, from, until, width, height, gutter);
    const places = this.#places(context, rows, line, gutter, width);
    context.save();
    context.beginPath();
    context.rect(gutter, 0, width - gutter, height);
    context.clip();
    const bar = (place, phase, begin, end, lost, running) => {
      const tall = phase === "prefill" ? line - 4 : Math.max(3, (line - 4) * 0.5);
      context.fillStyle = lost ? ink("bad") : phase === "prefill" ? colour(place.model) : faded(colour(place.model), running ? 0.5 : 0.75);
      context.fillRect(x(begin), place.y + line - 2 - tall, Math.max(1, x(end) - x(begin)), tall);
    };
    for (const [device, model, phase, begin, end, , , , , lost] of picture.ran) {
      const place = places.get(`${device} ${model}`);
      if (place && end >= from && begin <= until) bar(place, phase, begin, Math.min(end, until), lost);
    }
    for (const device of Object.values(picture.devices)) {
      for (const [model, phase, begin] of device.flights) {
        const place = places.get(`${device.name} ${model}`);
        if (place && begin < until && this.end === null) bar(place, phase, begin, until, false, true);
      }
    }
    this.#marks(context, picture, places, x, from, until, line);
    context.restore();
    this.painted = performance.now();
    this.took = this.painted - began;
  }

  #grid(context, x, from, until, width, height, gutter) {
    const least = (this.span * 76) / (width - gutter); // seconds that a label needs
    const step = [1, 2, 5, 10, 15, 30, 60, 120].find((seconds) => seconds >= least) ?? 300;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (let time = Math.ceil(from / step) * step; time <= until; time += step) {
      context.fillStyle = ink("grid");
      context.fillRect(Math.round(x(time)), TOP - 4, 1, height - TOP - FOOT + 8);
      context.fillStyle = ink("soft");
      if (x(time) > gutter + 24 && x(time) < width - 24) context.fillText(clock(time), x(time), height - 5);
    }
  }

  #places(context, rows, line, gutter, width) {
    const places = new Map();
    let y = TOP, device = null;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.font = `${Math.min(12, line - 2)}px system-ui, sans-serif`;
    for (const row of rows) {
      if (device !== null && row.device !== device) {
        context.fillStyle = ink("edge");
        context.fillRect(0, Math.round(y + GAP / 2), width, 1);
        y += GAP;
      }
      device = row.device;
      places.set(`${row.device} ${row.model}`, { y, model: row.model });
      context.fillStyle = colour(row.model);
      context.beginPath();
      context.roundRect(0, y + line / 2 - 4, 8, 8, 2);
      context.fill();
      context.fillStyle = ink("ink");
      context.fillText(fitted(context, row.model, gutter - 22), 14, y + line / 2 + 1);
      y += line;
    }
    this.places = places;
    return places;
  }

  #marks(context, picture, places, x, from, until, line) {
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    context.font = "11px system-ui, sans-serif";
    for (const [device, time, kind, model] of picture.marks) {
      if (time < from || time > until) continue;
      const [sign, tone] = SIGNS[kind] ?? ["·", "note"];
      const place = places.get(`${device} ${model}`);
      context.fillStyle = ink(tone);
      context.globalAlpha = 0.45;
      context.fillRect(x(time), place ? place.y : TOP - 6, 1, place ? line : 6);
      context.globalAlpha = 1;
      context.fillText(sign, x(time), 13);
    }
  }

  #point(event) {
    const { gutter, from, width, line } = this.scale ?? {};
    if (!this.places || event.offsetX < gutter) return void (this.tip.hidden = true);
    const time = from + ((event.offsetX - gutter) / (width - gutter)) * this.span;
    const near = (this.span / (width - gutter)) * 4;
    const said = [];
    for (const [device, at, kind, model, detail] of this.state.picture.marks) {
      if (Math.abs(at - time) < near && event.offsetY < TOP) said.push([kind, model, device, detail].filter(Boolean).join(" · "));
    }
    for (const [name, place] of this.places) {
      if (event.offsetY < place.y || event.offsetY >= place.y + line) continue;
      const run = this.state.picture.ran.findLast((one) => `${one[0]} ${one[1]}` === name && one[3] - near <= time && one[4] + near >= time);
      if (run) {
        said.push(`${run[1]} · ${run[2]} · ${milliseconds(1000 * (run[4] - run[3]))} · ${run[8]} batches of up to ${run[6]} sequences · ` +
          `${run[7]} tokens · ${run[5]} % of the device`);
      }
    }
    this.tip.hidden = !said.length;
    write(this.tip, said.slice(0, 4).join("\n"));
    style(this.tip, "left", `${Math.max(0, Math.min(event.offsetX + 12, width - 300))}px`);
    style(this.tip, "top", `${event.offsetY + 16}px`);
  }
}

// Workers that have run or could: by device, in the order in which models are served.
function rowsOf(picture) {
  const ran = new Set(picture.ran.map((run) => `${run[0]} ${run[1]}`));
  return Object.values(picture.devices).flatMap((device) => Object.keys(picture.models)
    .filter((model) => ran.has(`${device.name} ${model}`) || model in device.accounts)
    .map((model) => ({ device: device.name, model })));
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let cut = text;
  while (cut.length > 1 && context.measureText(`${cut}…`).width > width) cut = cut.slice(0, -1);
  return `${cut}…`;
}

// For who cannot see it.
function summary(picture, from) {
  const busy = new Map();
  for (const [, model, , begin, end] of picture.ran) {
    if (end >= from) busy.set(model, (busy.get(model) ?? 0) + end - Math.max(begin, from));
  }
  return [...busy].map(([model, seconds]) => `${model} computed for ${seconds.toFixed(1)} s`).join("; ") || "nothing was computed";
}
