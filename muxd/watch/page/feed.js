// Reads /api/events, and comes back by itself when the daemon or the network has gone away.

import { Refused, ask, frames } from "./door.js";

const SILENT = 15000; // the daemon tells the time every five seconds: after so many it is gone

export class Feed {
  // `hear(name, value)` for each frame; `tell(state, text)`: how the connection is.
  constructor(hear, tell) {
    Object.assign(this, { hear, tell, tries: 0, wake: null });
    for (const [target, event] of [[window, "online"], [document, "visibilitychange"]]) {
      target.addEventListener(event, () => !document.hidden && this.wake?.());
    }
  }

  // Also with another key: whatever is open ends.
  again() {
    this.tries = 0;
    this.control?.abort();
    this.wake?.();
  }

  async run() {
    for (;;) {
      try {
        await this.#read();
        this.tell("gone", "muxd has ended; coming back");
      } catch (error) {
        if (error instanceof Refused && [401, 403].includes(error.status)) {
          this.tell("refused", error.message);
          await new Promise((resolve) => (this.wake = resolve));
          continue;
        }
        this.tell("gone", error instanceof Refused ? error.message : "no answer; trying again");
      }
      this.tries += 1;
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, Math.min(5000, 250 * 2 ** Math.min(this.tries, 6)));
      });
      this.wake = null;
    }
  }

  async #read() {
    this.control = new AbortController();
    const control = this.control;
    let guard = setTimeout(() => control.abort(), SILENT);
    try {
      const answer = await ask("/api/events", { signal: control.signal });
      for await (const [name, data] of frames(answer.body)) {
        clearTimeout(guard);
        guard = setTimeout(() => control.abort(), SILENT);
        if (name === "picture") {
          this.tries = 0;
          this.tell("live", "live");
        }
        this.hear(name, JSON.parse(data));
      }
    } finally {
      clearTimeout(guard);
      control.abort();
    }
  }
}
