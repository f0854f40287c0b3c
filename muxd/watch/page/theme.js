// Light, dark, or as the system has it.

import { find, put, write } from "./dom.js";

const STORED = "muxd-theme";
const CHOICES = ["auto", "light", "dark"];

export function theme(redraw) {
  const button = find("#theme");
  const show = (choice) => {
    put(document.documentElement, "data-theme", choice === "auto" ? null : choice);
    write(button, choice[0].toUpperCase() + choice.slice(1));
    put(button, "aria-label", `Theme: ${choice === "auto" ? "as the system has it" : choice}`);
    redraw();
  };
  let choice = CHOICES.includes(localStorage.getItem(STORED)) ? localStorage.getItem(STORED) : "auto";
  show(choice);
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    localStorage.setItem(STORED, choice);
    show(choice);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

// A colour of the page, for what is drawn on a canvas.
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
