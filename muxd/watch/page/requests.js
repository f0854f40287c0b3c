// The last requests; a click says where the time went; those that run can be ended.

import { colour } from "./colours.js";
import { Refused, ask } from "./door.js";
import { element, find, keyed, put, style, toast, write } from "./dom.js";
import { clock, milliseconds } from "./format.js";
import { showWhy } from "./why.js";

const SHOWN = 60;

export class Requests {
  constructor(rights) {
    this.rights = rights;
    this.body = find("#requests tbody");
  }

  draw(picture, state) {
    const rows = Object.values(picture.requests).sort((a, b) => b.arrived - a.arrived).slice(0, SHOWN);
    put(find("#requests"), "data-keyed", rows.some((row) => row.key));
    put(find("#requests"), "data-empty", rows.length === 0);
    keyed(this.body, rows, (row) => row.id, (row) => this.#row(row), (node, row) => this.#fill(node, row, state));
  }

  #row(row) {
    const open = element("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => showWhy(row.id) });
    const cancel = element("button", { type: "button", class: "small", "aria-label": `Cancel ${row.id}`, onclick: () => this.#cancel(row) }, "Cancel");
    return element("tr", {}, element("td", {}, open), element("td", { class: "of" }, element("span", { class: "swatch" }), element("span")),
      element("td", { class: "keyed" }), element("td", { class: "n queued" }), element("td", { class: "n" }), element("td", { class: "n counted" }),
      element("td", { class: "n took" }), element("td", { class: "outcome" }, element("span", { class: "chip" }), cancel));
  }

  #fill(node, row, state) {
    const [came, model, key, queue, ttft, tokens, took, outcome] = node.children;
    const running = row.seconds === null;
    const age = 1000 * (state.now - row.arrived);
    write(came.firstElementChild, clock(row.arrived));
    put(came.firstElementChild, "aria-label", `Why: ${row.id}, ${row.model}, came at ${clock(row.arrived)}`);
    put(came.firstElementChild, "title", row.id);
    style(model, "--colour", colour(row.model));
    write(model.lastElementChild, row.model);
    write(key, row.key || "–");
    write(queue, milliseconds(row.queue_ms ?? (running ? age : row.seconds * 1000)));
    write(ttft, milliseconds(row.ttft_ms));
    write(tokens, `${row.prompt_tokens} → ${row.tokens}`);
    write(took, milliseconds(running ? age : row.seconds * 1000));
    const [chip, cancel] = outcome.children;
    write(chip, row.state);
    put(chip, "data-state", row.state);
    cancel.hidden = !running;
    cancel.disabled = !this.rights.may_act;
    put(cancel, "title", this.rights.may_act ? null : "needs an API key with actions = true");
  }

  async #cancel(row) {
    try {
      // The id of an answer, without the number of the choice.
      await ask(`/v1/requests/${encodeURIComponent(row.id.replace(/-\d+$/, ""))}`, { method: "DELETE" });
    } catch (error) {
      toast(error instanceof Refused ? error.message : "no answer", "error");
    }
  }
}
