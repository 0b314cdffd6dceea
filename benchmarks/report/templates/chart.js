"use strict";
// The chart that tells its values. Without it the page reads as well.
const NS = "http://www.w3.org/2000/svg";
function draw(parent, name, attributes, text) {
  const node = parent.appendChild(document.createElementNS(NS, name));
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return node;
}
const shown = (x) => x >= 999.5 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(3)));

function chart(box) {
  const data = JSON.parse(box.querySelector("script").textContent);
  const [pick, what] = box.querySelectorAll("select"), svg = box.querySelector("svg");
  const left = 52, top = 12;
  let right, bottom, x, y, at = data.n.length - 1, near = null;
  function scale(from, to, low, high) {
    const span = Math.log(to / from) || 1;
    return (value) => low + (high - low) * Math.log(value / from) / span;
  }
  const shownPoints = () => data.points.filter((one) => one.p === Number(pick.value));
  const value = (one) => one.values[what.value];
  function axes() {
    const width = Math.max(svg.clientWidth, 280), height = Math.round(Math.max(0.62 * width, 300));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    [right, bottom] = [width - 32, height - 44];
    x = scale(data.n[0], data.n.at(-1), left + 8, right - 8);
    const all = data.points.map(value).filter((v) => v > 0);
    y = scale(Math.min(...all), Math.max(...all), bottom - 10, top + 10);
    for (let e = -6; e < 9; e++) for (const m of [1, 3]) {
      const tick = m * 10 ** e, h = y(tick);
      if (h < top || h > bottom) continue;
      draw(svg, "line", { x1: left, x2: right, y1: h, y2: h, stroke: "#e6e9eb" });
      draw(svg, "text", { x: left - 8, y: h + 4, "text-anchor": "end" }, shown(tick));
    }
    let last = -Infinity;
    for (const n of data.n) if (x(n) - last > 44) draw(svg, "text", { x: last = x(n), y: bottom + 20, "text-anchor": "middle" }, n.toLocaleString("en"));
    draw(svg, "text", { x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, "number of cells n");
  }
  function lines() {
    svg.replaceChildren();
    axes();
    draw(svg, "line", { class: "cursor", y1: top, y2: bottom, stroke: "#8a949b" });
    data.variants.forEach((look, v) => {
      const points = shownPoints().filter((one) => one.v === v && value(one) > 0).map((one) => ({ one, at: [x(one.n), y(value(one))] }));
      const group = draw(svg, "g", { "data-v": v, stroke: look.color, "stroke-width": 1.5, fill: "none" });
      draw(group, "polyline", { points: points.map((point) => point.at).join(" "), "stroke-dasharray": look.dash });
      for (const { one, at: [cx, cy] } of points) draw(group, "circle", { cx, cy, r: 3, fill: one.extrapolated ? "#ffffff" : look.color });
    });
    tell();
  }
  function tell() {
    const n = data.n[at], here = shownPoints().filter((one) => one.n === n).sort((a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity));
    for (const side of ["x1", "x2"]) svg.querySelector(".cursor").setAttribute(side, x(n));
    box.querySelector(".readout p").textContent = `n = ${n.toLocaleString("en")}, p = ${Number(pick.value).toLocaleString("en")}`;
    box.querySelector(".readout ol").replaceChildren(...here.map((one) => {
      const row = document.createElement("li"), look = data.variants[one.v];
      const swatch = draw(row, "svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
      draw(swatch, "line", { x1: 0, x2: 24, y1: 4, y2: 4, stroke: look.color, "stroke-width": 2.5, "stroke-dasharray": look.dash });
      row.className = one.v === near ? "near" : "";
      const number = value(one) == null ? one.ended : `${shown(value(one))} ${data.units[what.value]}`;
      for (const text of [look.label, number]) row.appendChild(document.createElement("span")).textContent = text;
      return row;
    }));
    for (const line of svg.querySelectorAll("g")) line.setAttribute("stroke-width", Number(line.dataset.v) === near ? 3 : 1.5);
  }
  function point(event) {
    const area = svg.getBoundingClientRect(), px = event.clientX - area.left, py = event.clientY - area.top;
    const nearest = (items, far) => items.reduce((best, item) => far(item) < far(best) ? item : best, items[0]);
    at = data.n.indexOf(nearest(data.n, (n) => Math.abs(x(n) - px)));
    near = nearest(shownPoints().filter((one) => one.n === data.n[at] && value(one) > 0), (one) => Math.abs(y(value(one)) - py))?.v;
    tell();
  }
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    at = Math.min(Math.max(at + step, 0), data.n.length - 1);
    tell();
    event.preventDefault();
  });
  for (const control of [pick, what]) control.addEventListener("change", lines);
  addEventListener("resize", lines);
  box.hidden = false;
  lines();
}
document.querySelectorAll(".chart").forEach(chart);
