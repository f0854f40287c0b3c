// Elements, made and kept by key. Text is always text: names come from strangers.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const find = (selector) => document.querySelector(selector);

// Only what differs is written: a live page that rewrites itself loses selections and focus.
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function put(node, name, value) {
  const text = value === true ? "" : value;
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(text)) node.setAttribute(name, text);
}

export function style(node, name, value) {
  if (node.style.getPropertyValue(name) !== value) node.style.setProperty(name, value);
}

// The canvas drawn at the screen's own resolution, which is returned: pixels of it for each of CSS.
export function sized(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.height = `${height}px`;
  }
  return ratio;
}

// The children of `parent` become those of `rows`, in order; `make(key)` makes one, `update(node, row)` fills it.
export function keyed(parent, rows, key, make, update) {
  const kept = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const row of rows) {
    const name = key(row);
    let node = kept.get(name);
    kept.delete(name);
    if (!node) {
      node = make(row);
      node.dataset.key = name;
    }
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    update(node, row);
  }
  for (const left of kept.values()) left.remove();
}

export function toast(text, kind = "info") {
  const made = element("p", { class: `toast ${kind}` }, text);
  find("#toasts").append(made);
  setTimeout(() => made.remove(), kind === "error" ? 9000 : 4000);
}
