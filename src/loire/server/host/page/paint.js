// What both pictures share: colours of the theme, sharp canvases, and patterns.

export const NUM_COLORS = 12;
let colors = null;

/** The theme's colours by name, and those of requests as a list. */
export function theme() {
  if (colors === null) {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    colors = {
      ink: read("ink"),
      label: read("label"),
      muted: read("muted"),
      lane: read("lane"),
      line: read("line"),
      edge: read("edge"),
      shared: read("shared"),
      cached: read("cached"),
      requests: Array.from({ length: NUM_COLORS }, (_, index) => read(`c${index}`)),
    };
  }
  return colors;
}

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Call when the theme has changed, with its colours known anew. */
export function onThemeChange(listener) {
  dark.addEventListener("change", () => {
    colors = null;
    listener();
  });
}

export function requestColor(request) {
  return theme().requests[request % NUM_COLORS];
}

/** A canvas of a size in CSS pixels, cleared, with one unit per CSS pixel. */
export function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const wanted = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wanted[0] || canvas.height !== wanted[1]) {
    [canvas.width, canvas.height] = wanted;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Slanted lines over a rectangle: the sign that does not need a colour. */
export function hatch(context, x, y, width, height) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.beginPath();
  const first = Math.floor((x - height) / 5) * 5;
  for (let at = first; at < x + width; at += 5) {
    context.moveTo(at, y + height);
    context.lineTo(at + height, y);
  }
  context.strokeStyle = theme().ink;
  context.globalAlpha = 0.42;
  context.lineWidth = 1.4;
  context.stroke();
  context.restore();
}
