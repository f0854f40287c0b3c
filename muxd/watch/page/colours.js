// One colour a model, in the order in which models are served; it keeps its colour while the page is open.
// The first eight are told apart by people who see colours differently (after Okabe and Ito); further ones go
// round the hues by the golden angle, and names beside them do the rest.

const FIRST = ["#3f8fe6", "#eda100", "#16b088", "#d073b0", "#e0662a", "#6fc3f2", "#8c6de0", "#b9b02a"];
const known = new Map();

export function colour(model) {
  if (!known.has(model)) {
    const index = known.size;
    const further = index - FIRST.length;
    known.set(model, further < 0 ? FIRST[index]
      : hexadecimal((40 + further * 137.5) % 360, [62, 45, 74][further % 3], [52, 62, 44][further % 3]));
  }
  return known.get(model);
}

export function assign(models) {
  models.forEach(colour);
}

// From hue (degrees), saturation and lightness (percent).
function hexadecimal(hue, saturation, lightness) {
  const l = lightness / 100;
  const a = (saturation / 100) * Math.min(l, 1 - l);
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (l - a * Math.max(-1, Math.min(k - 3, 9 - k, 1)))).toString(16).padStart(2, "0");
  };
  return `#${part(0)}${part(8)}${part(4)}`;
}

export function faded(hex, alpha) {
  return hex + Math.round(255 * alpha).toString(16).padStart(2, "0");
}

// What stands on it can be read: a darker or lighter one of the page's own.
export function hatch(context, hex, ratio) {
  const size = 6 * ratio;
  const tile = document.createElement("canvas");
  tile.width = tile.height = size;
  const drawn = tile.getContext("2d");
  drawn.fillStyle = faded(hex, 0.3);
  drawn.fillRect(0, 0, size, size);
  drawn.strokeStyle = hex;
  drawn.lineWidth = 2 * ratio;
  for (const shift of [-size, 0, size]) {
    drawn.beginPath();
    drawn.moveTo(shift - size / 2, size * 1.5);
    drawn.lineTo(shift + size * 1.5, -size / 2);
    drawn.stroke();
  }
  return context.createPattern(tile, "repeat");
}
