// Ten minutes as a line, the newest at the right.

const SPACE = "http://www.w3.org/2000/svg";
const MOST = 120, LEAST = 24; // points: ten minutes; of a younger daemon two at least
const WIDTH = 120, HEIGHT = 26;

export function spark() {
  const svg = document.createElementNS(SPACE, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("role", "img");
  for (const name of ["area", "line"]) {
    const path = document.createElementNS(SPACE, "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}

export function drawSpark(svg, points, colour) {
  const top = Math.max(1, ...points);
  const x = (index) => WIDTH - ((points.length - 1 - index) * WIDTH) / (Math.min(MOST, Math.max(LEAST, points.length)) - 1);
  const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - 5);
  const line = points.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const [area, stroke] = svg.children;
  area.setAttribute("d", points.length ? `${line}L${WIDTH} ${HEIGHT}L${x(0).toFixed(1)} ${HEIGHT}Z` : "");
  stroke.setAttribute("d", line);
  area.setAttribute("fill", colour);
  stroke.setAttribute("stroke", colour);
  svg.setAttribute("aria-label", points.length ? `tokens a second over ten minutes, at most ${top.toFixed(0)}` : "nothing yet");
}
