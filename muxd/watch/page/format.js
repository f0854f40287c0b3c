// Numbers for people. The units are muxctl's: binary sizes, times by their own scale.

export function bytes(count) {
  for (const [unit, letter] of [[2 ** 40, "T"], [2 ** 30, "G"], [2 ** 20, "M"], [2 ** 10, "K"]]) {
    if (count >= unit) {
      const value = count / unit;
      return `${value >= 100 ? value.toFixed(0) : value.toFixed(1).replace(/\.0$/, "")} ${letter}iB`;
    }
  }
  return `${count} B`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 60000) return `${(value / 60000).toFixed(1)} min`;
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return value >= 10 ? `${value.toFixed(0)} ms` : `${value.toFixed(1)} ms`;
}

export function duration(seconds) {
  for (const [unit, letter] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= unit) return `${Math.floor(seconds / unit)} ${letter}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

export const percent = (part) => (part === null || part === undefined ? "–" : `${Math.round(100 * part)} %`);

export const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1).replace(/^0\.0$/, "0"));

export const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour12: false });

export const many = (count, one, more = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
