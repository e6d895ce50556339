
"use strict";
// A line chart: {title, x, y, log, height, series: [{name, color, points: [[x, y], …], faint, dots, dash}], format, formatX}.
// The pointer, or the arrow keys once the chart has the focus, moves a cursor over the places of its points.
const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function short(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return String(+value.toPrecision(4));
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return whole + "s";
  if (whole < 3600) return Math.floor(whole / 60) + "m" + String(whole % 60).padStart(2, "0") + "s";
  return Math.floor(whole / 3600) + "h" + String(Math.floor(whole / 60) % 60).padStart(2, "0") + "m";
}

// About `count` round numbers that cover low to high.
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= raw);
  const list = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) list.push(+(at * step).toPrecision(12));
  return list;
}

function decades(low, high) {
  const list = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const factor of high - low > 3 ? [1] : [1, 2, 5]) {
      const at = power + Math.log10(factor);
      if (at >= low - 1e-9 && at <= high + 1e-9) list.push(at);
    }
  return list;
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return x - points[low][0] <= points[high][0] - x ? points[low] : points[high];
}

class Chart {
  constructor(options) {
    this.options = { height: 260, format: short, formatX: short, ...options };
    this.series = this.options.series.filter(one => one.points.length > 0);
    this.figure = element("figure");
    this.figure.append(element("h3", {}, this.options.title));
    this.svg = node("svg", {
      tabindex: 0, role: "slider", "aria-orientation": "horizontal", height: this.options.height,
      "aria-label": `${this.options.title}, ${this.options.y} over ${this.options.x}. Arrow keys move along the curve.`,
    });
    this.readout = element("p", { class: "readout" });
    this.figure.append(this.svg, this.readout);
    const named = this.series.filter(one => !one.faint);
    this.places = [...new Set(named.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
    this.at = -1;
    this.svg.addEventListener("pointermove", event => this.point(event));
    this.svg.addEventListener("pointerdown", event => this.point(event));
    this.svg.addEventListener("pointerleave", () => { if (document.activeElement !== this.svg) this.show(-1); });
    this.svg.addEventListener("keydown", event => this.key(event));
    this.svg.addEventListener("focus", () => { if (this.at < 0) this.show(this.places.length - 1); });
    this.svg.addEventListener("blur", () => this.show(-1));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  draw() {
    const width = this.svg.clientWidth || this.figure.clientWidth - 26;
    if (width <= 0 || width === this.width) return;
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.options.height}`);
    this.svg.replaceChildren();
    const all = this.series.flatMap(one => one.points);
    if (all.length === 0) { this.svg.append(node("text", { x: 8, y: 24 }, "no values")); return; }
    const scale = value => this.options.log ? Math.log10(value) : value;
    const ys = all.map(point => scale(point[1])).filter(Number.isFinite);
    const xs = all.map(point => point[0]);
    let [x0, x1] = this.options.domain || [Math.min(...xs), Math.max(...xs)];
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    let [y0, y1] = this.options.range || [Math.min(...ys), Math.max(...ys)];
    const margin = this.options.range ? 0 : Math.max((y1 - y0) * 0.05, Math.abs(y1) * 1e-3, 1e-12);
    y0 -= margin; y1 += margin;
    const box = { left: 56, right: width - 12, top: 10, bottom: this.options.height - 40 };
    this.box = box;
    this.x = value => box.left + (value - x0) / (x1 - x0) * (box.right - box.left);
    this.y = value => box.bottom - (scale(value) - y0) / (y1 - y0) * (box.bottom - box.top);
    this.back = pixel => x0 + (pixel - box.left) / (box.right - box.left) * (x1 - x0);
    this.axes([x0, x1], [y0, y1]);
    for (const one of this.series) this.curve(one);
    this.marks = node("g", { "aria-hidden": "true" });
    this.svg.append(this.marks);
    this.svg.setAttribute("aria-valuemin", 0);
    this.svg.setAttribute("aria-valuemax", this.places.length - 1);
    this.show(this.at);
  }

  axes([x0, x1], [y0, y1]) {
    const { box, options } = this;
    const yTicks = options.log ? decades(y0, y1) : ticks(y0, y1, (box.bottom - box.top) / 36);
    for (const at of yTicks) {
      const y = box.bottom - (at - y0) / (y1 - y0) * (box.bottom - box.top);
      this.svg.append(node("line", { class: "tick", x1: box.left, x2: box.right, y1: y, y2: y }));
      const value = options.log ? +(10 ** at).toPrecision(4) : at;
      this.svg.append(node("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, options.format(value)));
    }
    for (const at of ticks(x0, x1, Math.max(2, Math.floor(this.width / 110)))) {
      const x = this.x(at);
      this.svg.append(node("line", { class: "tick", x1: x, x2: x, y1: box.bottom, y2: box.bottom + 4 }));
      this.svg.append(node("text", { x, y: box.bottom + 17, "text-anchor": "middle" }, options.formatX(at)));
    }
    this.svg.append(node("text", { x: box.right, y: box.bottom + 34, "text-anchor": "end" }, options.x));
    this.svg.append(node("text", { x: box.left, y: box.bottom + 34 }, options.y));
  }

  curve(one) {
    const place = point => `${this.x(point[0]).toFixed(1)} ${this.y(point[1]).toFixed(1)}`;
    const points = one.points.filter(point => Number.isFinite(this.y(point[1])));
    const path = node("path", { class: one.faint ? "line faint" : "line", d: points.length ? "M" + points.map(place).join("L") : "" });
    path.style.stroke = one.color;
    if (one.dash) path.setAttribute("stroke-dasharray", one.dash);
    this.svg.append(path);
    if (one.dots || points.length === 1) for (const point of points) {
      const dot = node("circle", { cx: this.x(point[0]), cy: this.y(point[1]), r: 3.5 });
      dot.style.fill = one.color;
      this.svg.append(dot);
    }
  }

  point(event) {
    if (!this.back || this.places.length === 0) return;
    const x = this.back(event.clientX - this.svg.getBoundingClientRect().left);
    this.show(this.places.indexOf(nearest(this.places.map(place => [place]), x)[0]));
  }

  key(event) {
    const last = this.places.length - 1, page = Math.max(1, Math.round(last / 10));
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    this.show(Math.min(last, Math.max(0, Math.max(this.at, 0) + moves[event.key])));
  }

  // Puts the cursor at a place, or takes it away at -1.
  show(at) {
    this.at = at;
    this.readout.replaceChildren();
    if (this.marks) this.marks.replaceChildren();
    if (at < 0 || !this.marks) return;
    const x = this.places[at], { options } = this, spoken = [];
    this.marks.append(node("line", { class: "cursor", x1: this.x(x), x2: this.x(x), y1: this.box.top, y2: this.box.bottom }));
    this.readout.append(element("span", {}, `${options.x} ${options.formatX(x)}`));
    for (const one of this.series.filter(one => !one.faint)) {
      const [px, py] = nearest(one.points, x);
      if (!Number.isFinite(this.y(py)) || Math.abs(this.x(px) - this.x(x)) > 24) continue;
      const mark = node("circle", { cx: this.x(px), cy: this.y(py), r: 4 });
      mark.style.fill = one.color;
      this.marks.append(mark);
      const swatch = element("i", { class: "swatch" });
      swatch.style.borderColor = one.color;
      this.readout.append(element("span", {}, swatch, ` ${one.name} ${options.format(py)}`));
      spoken.push(`${one.name} ${options.format(py)}`);
    }
    this.svg.setAttribute("aria-valuenow", at);
    this.svg.setAttribute("aria-valuetext", `${options.x} ${options.formatX(x)}: ${spoken.join(", ")}`);
  }
}
