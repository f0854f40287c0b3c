// The picture, as the daemon has it: what muxd/watch/changes.py does, done again here.

const WINDOW = 300;
const RAN = 6000, MARKS = 500, EVENTS = 200, POINTS = 120;

export class State {
  constructor() {
    this.picture = null;
    this.offset = 0; // seconds that the daemon's clock is ahead of this one's
  }

  begin(picture) {
    this.picture = picture;
    this.#hear(picture.time);
  }

  apply(change) {
    const now = this.picture;
    now.time = change.time;
    this.#hear(change.time);
    if (change.daemon) now.daemon = change.daemon;
    for (const table of ["devices", "models", "requests"]) {
      for (const [name, row] of Object.entries(change[table] ?? {})) {
        if (row === null) delete now[table][name];
        else now[table][name] = row;
      }
    }
    if (change.ran) now.ran.push(...change.ran);
    const old = now.ran.findIndex((run) => run[4] >= change.time - WINDOW);
    now.ran.splice(0, Math.max(old < 0 ? now.ran.length : old, now.ran.length - RAN));
    if (change.marks) now.marks = [...now.marks, ...change.marks].slice(-MARKS);
    if (change.events) now.events = [...now.events, ...change.events].slice(-EVENTS);
    for (const passed of change.tokens ?? []) {
      for (const name of new Set([...Object.keys(now.tokens), ...Object.keys(passed)])) {
        now.tokens[name] = [...(now.tokens[name] ?? []), passed[name] ?? 0].slice(-POINTS);
      }
    }
  }

  // Seconds since 1970 by the daemon's clock.
  get now() {
    return Date.now() / 1000 + this.offset;
  }

  // The smallest delay seen is the nearest to the truth; a clock that was set is followed.
  #hear(time) {
    const offset = time - Date.now() / 1000;
    this.offset = Math.abs(offset - this.offset) > 2 ? offset : Math.max(this.offset, offset);
  }
}
