// Wires the page: one feed, one picture, and each part draws itself from it.

import { assign } from "./colours.js";
import { Devices } from "./devices.js";
import { key, Refused } from "./door.js";
import { find, put, write } from "./dom.js";
import { Events } from "./events.js";
import { Feed } from "./feed.js";
import { Figures } from "./figures.js";
import { Models } from "./models.js";
import { Playground } from "./playground.js";
import { Requests } from "./requests.js";
import { State } from "./state.js";
import { theme } from "./theme.js";
import { Timeline } from "./timeline.js";

const state = new State();
const rights = { may_act: false, keys: false };
const parts = [new Figures(), new Devices(), new Models(rights), new Timeline(state), new Requests(rights),
  new Events(), new Playground()];

const feed = new Feed(hear, tell);
let asked = false; // a frame of the screen is on its way

function hear(name, value) {
  if (name === "hello") {
    Object.assign(rights, value);
    hint();
    return;
  }
  if (name === "picture") state.begin(value);
  else state.apply(value);
  if (!asked) {
    asked = true;
    // A hidden page gets no frames: it draws when it is looked at again.
    requestAnimationFrame(draw);
  }
}

function draw() {
  asked = false;
  assign(Object.keys(state.picture.models));
  for (const part of parts) part.draw(state.picture, state);
}

function tell(condition, text) {
  put(find("#link"), "data-state", condition);
  write(find("#link-text"), condition === "refused" ? "not let in" : text);
  const notice = find("#notice");
  notice.hidden = condition !== "refused";
  if (condition === "refused") {
    write(notice, text);
    if (!key.get()) openKey(text);
  }
  put(document.body, "data-link", condition);
}

function hint() {
  const line = find("#act-hint");
  line.hidden = rights.may_act;
  write(line, rights.keys
    ? "Buttons need a key that may act."
    : "Buttons are off: this server has no keys (server.keys). muxctl does the same.");
}

function openKey(why) {
  if (why) write(find("#key-why"), `${why}. It stays in this tab and is gone when the tab is closed.`);
  find("#key").value = key.get();
  if (!find("#key-dialog").open) find("#key-dialog").showModal();
}

function useKey(value) {
  key.set(value.trim());
  write(find("#open-key"), key.get() ? "Key ✓" : "Key");
  feed.again();
}

find("#open-key").addEventListener("click", () => openKey());
find("#key-cancel").addEventListener("click", () => find("#key-dialog").close());
find("#forget").addEventListener("click", () => {
  useKey("");
  find("#key-dialog").close();
});
find("#key-form").addEventListener("submit", () => useKey(find("#key").value));
write(find("#open-key"), key.get() ? "Key ✓" : "Key");

addEventListener("unhandledrejection", (event) => {
  if (event.reason instanceof Refused) event.preventDefault();
});
theme(() => state.picture && draw());
feed.run();
