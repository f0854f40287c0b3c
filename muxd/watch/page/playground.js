// Chat with one model, or ask two the same at once. Nothing of it is kept but on this page.

import { colour } from "./colours.js";
import { Refused, ask, frames } from "./door.js";
import { element, find, put, style, write } from "./dom.js";
import { milliseconds, rate } from "./format.js";

const NOBODY = "";

export class Playground {
  constructor() {
    this.panes = { first: new Pane("first"), second: new Pane("second") };
    this.names = "";
    find("#open-playground").addEventListener("click", () => this.#open(find("#playground").hidden));
    find("#close-playground").addEventListener("click", () => {
      this.#open(false);
      find("#open-playground").focus();
    });
    for (const which of ["first", "second"]) find(`#${which}`).addEventListener("change", () => this.#choose());
    find("#ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    find("#prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      }
    });
    find("#halt").addEventListener("click", () => this.control?.abort());
    find("#clear").addEventListener("click", () => Object.values(this.panes).forEach((pane) => pane.clear()));
    this.#open(matchMedia("(min-width: 1240px)").matches, false);
  }

  draw(picture) {
    this.models = picture.models;
    const names = Object.values(picture.models).filter((model) => model.generates).map((model) => model.name);
    if (names.join("\n") === this.names) return;
    this.names = names.join("\n");
    for (const which of ["first", "second"]) {
      const select = find(`#${which}`), had = select.value;
      const options = names.map((name) => element("option", { value: name }, name));
      select.replaceChildren(...(which === "second" ? [element("option", { value: NOBODY }, "nobody")] : []), ...options);
      const chats = names.find((name) => picture.models[name].chat) ?? names[0] ?? NOBODY;
      select.value = names.includes(had) ? had : which === "first" ? chats : NOBODY;
    }
    this.#choose();
  }

  #open(open, focus = true) {
    find("#playground").hidden = !open;
    put(document.body, "data-playground", open);
    put(find("#open-playground"), "aria-expanded", String(open));
    if (open && focus) find("#prompt").focus();
  }

  #choose() {
    for (const [which, pane] of Object.entries(this.panes)) pane.show(find(`#${which}`).value);
  }

  async #send() {
    const text = find("#prompt").value.trim();
    const asked = Object.values(this.panes).filter((pane) => pane.model);
    if (!text || this.control || !asked.length) return;
    find("#prompt").value = "";
    this.control = new AbortController();
    find("#halt").disabled = false;
    find("#send").disabled = true;
    const most = Math.max(1, Number(find("#most").value) || 200);
    await Promise.all(asked.map((pane) => pane.ask(text, this.models[pane.model], most, this.control.signal)));
    this.control = null;
    find("#halt").disabled = true;
    find("#send").disabled = false;
  }
}

class Pane {
  constructor(which) {
    this.node = find(`#pane-${which}`);
    this.title = element("h3", { class: "of" }, element("span", { class: "swatch" }), element("span"));
    this.log = element("div", { class: "log", role: "log", tabindex: "0" });
    this.meter = element("p", { class: "hint" });
    this.node.append(this.title, this.log, this.meter);
    this.model = NOBODY;
    this.turns = [];
  }

  show(model) {
    this.node.hidden = !model;
    if (model === this.model) return;
    this.model = model;
    this.clear();
    write(this.title.lastElementChild, model);
    put(this.log, "aria-label", `Conversation with ${model}`);
    if (model) style(this.node, "--colour", colour(model));
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren();
    write(this.meter, "");
  }

  // A model without a chat template goes on from the text.
  async ask(text, model, most, signal) {
    this.turns.push({ role: "user", content: text });
    const said = element("p", { class: "said" });
    const thought = element("p", { class: "thought", hidden: true });
    this.log.append(element("p", { class: "asked" }, text), thought, said);
    const [path, body] = model.chat
      ? ["/v1/chat/completions", { messages: this.turns }]
      : ["/v1/completions", { prompt: text }];
    const began = performance.now();
    const out = new Pieces(this.log, said, thought);
    let first = null, tokens = 0;
    try {
      const answer = await ask(path, { method: "POST", signal, headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ model: model.name, stream: true, max_tokens: most, stream_options: { include_usage: true }, ...body }) });
      for await (const [, data] of frames(answer.body)) {
        if (data === "[DONE]") break;
        const frame = JSON.parse(data);
        if (frame.error) throw new Refused(500, frame.error.message);
        const choice = frame.choices?.[0];
        const piece = choice?.delta?.content ?? choice?.text ?? "", idea = choice?.delta?.reasoning_content ?? "";
        if (piece || idea) {
          first ??= performance.now();
          out.add(piece, idea);
        }
        tokens = frame.usage?.completion_tokens ?? tokens;
      }
      out.flush();
    } catch (error) {
      out.flush();
      if (error.name !== "AbortError") said.append(element("span", { class: "error" }, error instanceof Refused ? error.message : "the answer broke off"));
      else said.append(element("span", { class: "hint" }, " (stopped)"));
    }
    this.turns.push({ role: "assistant", content: said.textContent });
    const seconds = (performance.now() - (first ?? began)) / 1000;
    write(this.meter, first === null ? "no token" : `first token ${milliseconds(first - began)}` +
      (tokens > 1 ? ` · ${tokens} tokens · ${rate((tokens - 1) / seconds)} a second` : ""));
  }
}

// Tokens come faster than a screen shows them: they are put onto the page once a frame.
class Pieces {
  constructor(log, said, thought) {
    Object.assign(this, { log, said, thought, text: "", idea: "", begun: false, due: false });
  }

  add(text, idea) {
    this.text += text;
    this.idea += idea;
    if (this.due) return;
    this.due = true;
    // A hidden page has no frames.
    if (document.hidden) setTimeout(() => this.flush(), 200);
    else requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.due = false;
    const text = this.begun ? this.text : this.text.trimStart();
    this.begun ||= text !== "";
    if (text) this.said.append(text);
    if (this.idea) {
      this.thought.append(this.idea);
      this.thought.hidden = false;
    }
    this.text = this.idea = "";
    this.log.scrollTop = this.log.scrollHeight;
  }
}
