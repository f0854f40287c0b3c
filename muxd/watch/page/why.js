// Where one request's time went.

import { Refused, ask } from "./door.js";
import { element, find } from "./dom.js";
import { milliseconds } from "./format.js";

const WAITS = { worker: "its worker", slots: "a place in the batch", rows: "memory", share: "the device", turn: "its turn", busy: "its model's own batches" };

export async function showWhy(id) {
  const place = find("#why");
  place.replaceChildren(element("p", { class: "hint" }, "…"));
  if (!find("#why-dialog").open) find("#why-dialog").showModal();
  try {
    const answer = await ask(`/api/why/${encodeURIComponent(id)}`);
    place.replaceChildren(...(await answer.json()).map(story));
  } catch (error) {
    place.replaceChildren(element("p", { class: "notice" }, error instanceof Refused ? error.message : "no answer"));
  }
}

find("#why-close").addEventListener("click", () => find("#why-dialog").close());

function story(one) {
  const stages = [
    ...Object.entries(one.waits).map(([reason, seconds]) => [`waited for ${WAITS[reason] ?? reason}`, seconds, "wait"]),
    ["prefill", one.prefill, "prefill"], ["computed again", one.recompute, "again"],
    ["decode", one.decode, "decode"], ["between batches", one.held, "held"],
  ].filter(([, seconds]) => seconds > 0);
  const bar = element("div", { class: "stack stages", "aria-hidden": "true" });
  const list = element("dl", { class: "facts" });
  for (const [name, seconds, kind] of stages) {
    const part = element("i", { class: kind, title: `${name}: ${milliseconds(1000 * seconds)}` });
    part.style.flexGrow = String(seconds / Math.max(one.total, 1e-9));
    bar.append(part);
    list.append(element("dt", {}, element("span", { class: `key ${kind}` }), name), element("dd", {}, milliseconds(1000 * seconds)));
  }
  const facts = {
    state: one.state + (one.detail ? `: ${one.detail}` : ""), total: milliseconds(1000 * one.total),
    "first token": one.ttft === null || one.ttft === undefined ? "–" : milliseconds(1000 * one.ttft),
    tokens: `${one.prompt_tokens} in the prompt, ${one.cached_tokens} of them found computed; ${one.generated_tokens} generated`,
    preempted: one.preemptions ? `${one.preemptions} times` : "", key: one.key,
    "beside it": Object.entries(one.beside).map(([model, seconds]) => `${model} prefilled ${milliseconds(1000 * seconds)}`).join(", "),
    moved: one.stays.map((stay) => `${milliseconds(1000 * stay.seconds)} at ${stay.device}`).join(", "),
  };
  const rest = element("dl", { class: "facts" });
  for (const [name, text] of Object.entries(facts)) if (text) rest.append(element("dt", {}, name), element("dd", {}, text));
  return element("article", {}, element("p", {}, element("b", {}, one.adapter || one.model), " ", element("code", {}, one.id)), bar, list, rest);
}
