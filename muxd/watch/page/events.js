// What muxd decided, the newest first.

import { colour } from "./colours.js";
import { element, find, keyed, style, write } from "./dom.js";
import { clock } from "./format.js";

export class Events {
  draw(picture) {
    const rows = picture.events.slice(-100).reverse();
    keyed(find("#events"), rows, (one) => String(one.number),
      () => element("li", {}, element("time"), element("b"), element("span", { class: "of" }, element("span", { class: "swatch" }), element("span")), element("span", { class: "detail" })),
      (node, one) => {
        const [time, kind, model, detail] = node.children;
        write(time, clock(one.time));
        write(kind, one.kind);
        model.hidden = !one.model;
        if (one.model) style(model, "--colour", colour(one.model));
        write(model.lastElementChild, one.model);
        write(detail, [one.device, one.detail].filter(Boolean).join(" · "));
      });
  }
}
