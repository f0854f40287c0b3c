// One row a model: how it is, how it serves, and what can be done with it.

import { colour } from "./colours.js";
import { Refused, act } from "./door.js";
import { element, find, keyed, put, style, toast, write } from "./dom.js";
import { bytes, milliseconds, percent, rate } from "./format.js";
import { drawSpark, spark } from "./spark.js";

const MANY = 12; // models, from which on a filter helps

export class Models {
  constructor(rights) {
    this.rights = rights;
    this.body = find("#models tbody");
    this.busy = new Set();
    find("#filter").addEventListener("input", () => this.last && this.draw(...this.last));
  }

  draw(picture, state) {
    this.last = [picture, state];
    const models = Object.values(picture.models);
    const devices = Object.keys(picture.devices);
    put(find("#models"), "data-several", devices.length > 1);
    find("#filter-box").hidden = models.length < MANY;
    const wanted = find("#filter").value.trim().toLowerCase();
    const shown = models.filter((model) => !wanted || `${model.name} ${model.state} ${model.device}`.toLowerCase().includes(wanted));
    keyed(this.body, shown, (model) => model.name, (model) => this.#row(model),
      (row, model) => this.#fill(row, model, devices, picture.tokens[model.name] ?? []));
  }

  #row(model) {
    const cell = (kind, ...children) => element("td", { class: kind }, ...children);
    const row = element("tr", {},
      element("th", { scope: "row" }, element("span", { class: "swatch", "aria-hidden": "true" }), element("span", { class: "titled" }, element("span", { class: "name" }), " ", element("small")),
        element("span", { class: "actions", role: "group", "aria-label": `What to do with ${model.name}` })),
      cell("state", element("span", { class: "chip" })), cell("several"),
      cell("share", element("span", { class: "track" }, element("i", { class: "within" })), element("span")),
      cell("n"), cell("n"), cell("n"), cell("n"), cell("n strong"), cell("n"), cell("spark-cell", spark()));
    const labels = ["", "State", "Device", "Share", "Run", "Wait", "TTFT", "TPOT", "Tokens/s", "SLO", "Ten minutes"];
    [...row.children].forEach((one, index) => labels[index] && (one.dataset.label = labels[index]));
    row.buttons = this.#buttons(model.name);
    row.firstElementChild.lastElementChild.append(...Object.values(row.buttons));
    return row;
  }

  #fill(row, model, devices, points) {
    const [head, state, device, share, run, wait, ttft, tpot, tokens, slo, line] = row.children;
    style(row, "--colour", colour(model.name));
    write(head.children[1].firstElementChild, model.name);
    write(head.children[1].lastElementChild, [model.base ? `adapter of ${model.base}` : bytes(model.weight_bytes), model.pinned ? "pinned" : ""]
      .filter(Boolean).join(" · "));
    write(state.firstElementChild, model.state);
    put(state.firstElementChild, "data-state", model.state);
    put(state, "title", model.detail || null);
    write(device, model.device || "–");
    style(share.firstElementChild.firstElementChild, "width", `${Math.min(100, model.in_use)}%`);
    write(share.lastElementChild, `${Math.min(100, model.in_use)} %`);
    put(share, "title", `its part under contention: ${model.share} %`);
    write(run, String(model.running));
    write(wait, String(model.waiting));
    put(wait, "data-hot", model.waiting > 0);
    against(ttft, model.ttft_p50_ms, model.ttft_p99_ms, model.ttft_target_ms);
    against(tpot, model.tpot_p50_ms, model.tpot_p99_ms, model.tpot_target_ms);
    write(tokens, rate(model.tokens_per_second));
    write(slo, percent(model.attainment));
    put(slo, "data-verdict", model.attainment === null ? null : model.attainment >= 0.99 ? "good" : model.attainment >= 0.9 ? "fair" : "bad");
    const mark = points.join();
    if (row.drawn !== mark) {
      drawSpark(line.firstElementChild, points, colour(model.name));
      row.drawn = mark;
    }
    this.#enable(row.buttons, model, devices);
  }

  #buttons(name) {
    const button = (verb, text, what) => element("button", { type: "button", class: "small", "data-verb": verb, "aria-label": `${what} ${name}`,
      onclick: () => this.#do(verb, name) }, text);
    const move = element("select", { class: "small", "aria-label": `Move ${name} to`, onchange: () => {
      const device = move.value;
      move.value = "";
      if (device) this.#do("move", name, `?device=${encodeURIComponent(device)}`);
    } });
    return { load: button("load", "Load", "Load"), wake: button("wake", "Wake", "Wake"), sleep: button("sleep", "Sleep", "Let sleep"),
      unload: button("unload", "Unload", "Unload"), move, pin: button("pin", "Pin", "Pin"), unpin: button("unpin", "Unpin", "Unpin") };
  }

  #enable(buttons, model, devices) {
    const own = !model.base;
    const shown = {
      load: own && ["unloaded", "failed"].includes(model.state),
      wake: own && model.state === "asleep",
      sleep: own && model.state === "ready" && !model.pinned,
      unload: own && ["ready", "restarting", "asleep"].includes(model.state),
      move: own && model.state === "ready" && devices.length > 1,
      pin: own && !model.pinned && model.state !== "unloaded",
      unpin: own && model.pinned,
    };
    for (const [verb, node] of Object.entries(buttons)) {
      node.hidden = !shown[verb];
      node.disabled = !this.rights.may_act || this.busy.has(model.name);
      put(node, "title", this.rights.may_act ? null : "needs an API key with actions = true");
    }
    const places = devices.filter((name) => name !== model.device);
    if (buttons.move.dataset.places !== places.join()) {
      buttons.move.dataset.places = places.join();
      buttons.move.replaceChildren(element("option", { value: "" }, "Move…"), ...places.map((name) => element("option", { value: name }, name)));
    }
  }

  async #do(verb, name, query = "") {
    this.busy.add(name);
    this.draw(...this.last);
    try {
      await act(verb, name, query);
      toast(`${name}: ${{ load: "loaded", unload: "unloaded", sleep: "asleep", wake: "awake", move: "moved", pin: "pinned", unpin: "no longer pinned" }[verb]}`);
    } catch (error) {
      toast(error instanceof Refused ? error.message : `${verb} ${name}: no answer`, "error");
    } finally {
      this.busy.delete(name);
      this.draw(...this.last);
    }
  }
}

function against(cell, middle, late, target) {
  write(cell, middle === null ? "–" : `${milliseconds(middle)} / ${milliseconds(late)}`);
  put(cell, "data-verdict", !target || late === null ? null : late <= target ? "good" : middle <= target ? "fair" : "bad");
  put(cell, "title", target ? `target ${milliseconds(target)}` : "no target");
}
