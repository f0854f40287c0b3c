// The line at the top: the daemon as a whole.

import { element, find, keyed, write } from "./dom.js";
import { duration, many, rate } from "./format.js";

export class Figures {
  draw(picture, state) {
    const { daemon } = picture;
    const models = Object.values(picture.models);
    write(find("#about"), `${daemon.version} · policy ${daemon.policy} · up ${duration(state.now - daemon.began)}`);
    const ready = models.filter((model) => model.state === "ready").length;
    const sum = (name) => models.reduce((total, model) => total + model[name], 0);
    const rows = [
      ["Models ready", `${ready}`, `of ${models.length}`],
      ["Tokens a second", rate(sum("tokens_per_second")), `${sum("tokens").toLocaleString("en")} in all`],
      ["Running", `${sum("running")}`, `${sum("waiting")} waiting`],
      ["Served", (daemon.outcomes.served ?? 0).toLocaleString("en"),
        `${many(daemon.outcomes.refused ?? 0, "refused", "refused")}, ${daemon.outcomes.failed ?? 0} failed`],
    ];
    keyed(find("#figures"), rows, (row) => row[0],
      () => element("p", { class: "figure" }, element("span"), element("b"), element("small")),
      (node, row) => row.forEach((text, index) => write(node.children[index], text)));
  }
}
