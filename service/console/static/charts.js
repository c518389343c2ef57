// Small plots in SVG: one series over versions.

import { h, s } from "./dom.js";

const WIDTH = 256;
const HEIGHT = 96;
const LEFT = 40;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;

/**
 * A figure with `points` `[[version, value], ...]`, ascending. `kind` is "dots", or "steps" for what holds until
 * the next point; `show` writes a value; the axis ends at `ceiling`, or at a round number of at least `least`.
 */
export function plot(title, points, { kind = "dots", show = String, ceiling = null, least = 0 } = {}) {
  const last = points.length ? show(points[points.length - 1][1]) : "–";
  return h(
    "figure",
    { class: "plot" },
    h("figcaption", {}, h("span", {}, title), h("span", { class: "last" }, last)),
    points.length ? drawn(title, points, kind, show, ceiling ?? rounded(Math.max(least, ...points.map(([, value]) => value)))) : h("p", { class: "empty" }, "Nothing to plot yet."),
  );
}

function drawn(title, points, kind, show, top) {
  const versions = points.map(([version]) => version);
  const first = versions[0];
  const span = Math.max(versions[versions.length - 1] - first, 1);
  const x = (version) => LEFT + ((version - first) / span) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
  const path = points.map(([version, value], index) => segment(index, kind, x(version), y(value))).join("");
  const summary = `${title}: ${points.length} points, from version ${first} to ${versions[versions.length - 1]}, last ${show(points[points.length - 1][1])}`;
  return s(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary },
    [0, top].map((value) => [
      s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "y", x: LEFT - 6, y: y(value) + 3.5 }, show(value)),
    ]),
    s("text", { class: "x", x: LEFT, y: HEIGHT - 4 }, `v${first}`),
    versions.length > 1 && s("text", { class: "x end", x: WIDTH - RIGHT, y: HEIGHT - 4 }, `v${versions[versions.length - 1]}`),
    s("path", { class: "line", d: path }),
    points.map(([version, value]) =>
      s("circle", { class: "dot", cx: x(version), cy: y(value), r: points.length > 60 ? 1.2 : 2.2 }, s("title", {}, `v${version}: ${show(value)}`)),
    ),
  );
}

function segment(index, kind, x, y) {
  if (index === 0) return `M${x.toFixed(1)} ${y.toFixed(1)}`;
  return kind === "steps" ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `L${x.toFixed(1)} ${y.toFixed(1)}`;
}

/** The next number of 1, 2 or 5 times a power of ten. */
function rounded(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.9999);
}
