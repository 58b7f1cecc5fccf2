/* Training: curves with smoothing, scores over steps, pictures of the same clips over time; one run or two. */

const SVG = "http://www.w3.org/2000/svg";
const EDGE = { left: 52, right: 12, top: 10, bottom: 24 };
const courses = pageData.learning.filter(Boolean);
const charts = [];

function drawn(tag, attributes, ...inside) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
}

/** Exponential mean that starts at the first value; `strength` 0 leaves the points as they are. */
function smoothed(points, strength) {
  let total = 0;
  let weight = 0;
  return points.map(([step, value]) => {
    total = total * strength + value * (1 - strength);
    weight = weight * strength + (1 - strength);
    return [step, total / weight];
  });
}

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-6; i++) found.push(i * size);
  return found;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size && size < 1e-3 ? value.toExponential(1).replace(".0", "") : String(+value.toPrecision(4));
}

/** From the first to the last hundredth of the values, so that one outlier does not flatten a curve. */
function range(lines) {
  const values = lines.flatMap(({ raw }) => raw.map(([, value]) => value)).sort((a, b) => a - b);
  const cut = Math.floor(values.length / 100);
  const smooth = lines.flatMap(({ points }) => points.map(([, value]) => value));
  const low = Math.min(values[cut], ...smooth);
  const high = Math.max(values[values.length - 1 - cut], ...smooth);
  const even = high - low <= 1e-6 * Math.abs(high); // rounding apart
  const room = even ? Math.abs(high) * 0.05 || 1 : (high - low) * 0.05;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

class Chart {
  constructor(figure) {
    this.svg = figure.querySelector("svg");
    this.readout = figure.querySelector("output");
    const { chart } = figure.dataset;
    const scores = chart === "scores";
    this.dots = scores;
    this.lines = courses.flatMap((course, which) => {
      const own = scores ? course.scores : course.curves.filter(({ title }) => title === chart);
      const mark = courses.length > 1 ? "AB"[which] : "";
      return own.map(({ label = "", smooth = false, points }, i) => ({
        name: [mark, label].filter(Boolean).join(" "),
        smooth,
        raw: scores ? points.map(([step, share]) => [step, 100 * share]) : points,
        kind: `line-${"ab"[which]} dash-${i}`,
      }));
    });
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point());
  }

  draw(strength) {
    const width = Math.max(this.svg.clientWidth, 120);
    const height = this.svg.clientHeight;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const line of this.lines) line.points = line.smooth ? smoothed(line.raw, strength) : line.raw;
    const [low, high] = range(this.lines);
    const last = Math.max(...courses.map(({ steps }) => steps ?? 0), ...this.lines.map(({ raw }) => raw.at(-1)[0]));
    this.x = (step) => EDGE.left + (step / last) * (width - EDGE.left - EDGE.right);
    this.y = (value) => EDGE.top + ((high - value) / (high - low)) * (height - EDGE.top - EDGE.bottom);
    this.last = last;
    const inside = drawn("g", {});
    for (const { raw, points, kind, smooth } of this.lines) {
      if (smooth && strength > 0) inside.append(this.path(raw, `${kind} faint`, low, high));
      inside.append(this.path(points, kind, low, high));
      if (this.dots || points.length === 1) {
        for (const [step, value] of points) inside.append(drawn("circle", { cx: this.x(step), cy: this.y(value), r: 2.5, class: kind }));
      }
    }
    this.hair = drawn("line", { class: "hair", y1: EDGE.top, y2: height - EDGE.bottom, visibility: "hidden" });
    this.svg.replaceChildren(...this.grid(width, height, low, high, last), inside, this.hair);
    this.tell();
  }

  path(points, kind, low, high) {
    const at = ([step, value]) => `${this.x(step).toFixed(1)},${this.y(Math.min(Math.max(value, low), high)).toFixed(1)}`;
    return drawn("polyline", { class: kind, points: points.map(at).join(" ") });
  }

  grid(width, height, low, high, last) {
    const rows = ticks(low, high, 4).filter((value) => value >= low && value <= high).flatMap((value) => [
      drawn("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: this.y(value), y2: this.y(value) }),
      drawn("text", { x: EDGE.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, short(value)),
    ]);
    const columns = ticks(0, last, Math.max(2, Math.floor(width / 110))).map((step) => drawn(
      "text", { x: this.x(step), y: height - 6, "text-anchor": step && this.x(step) > width - 30 ? "end" : "middle" }, short(step),
    ));
    return [...rows, ...columns];
  }

  point(event) {
    if (!event) {
      this.hair.setAttribute("visibility", "hidden");
      return this.tell();
    }
    const box = this.svg.getBoundingClientRect();
    const wanted = ((event.clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right)) * this.last;
    const near = this.lines.map(({ points }) => points.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a)));
    const x = this.x(near[0][0]);
    this.hair.setAttribute("x1", x);
    this.hair.setAttribute("x2", x);
    this.hair.setAttribute("visibility", "visible");
    return this.tell(near);
  }

  /** The values under the pointer, or the newest. */
  tell(near = this.lines.map(({ points }) => points.at(-1))) {
    const values = this.lines.map(({ name, kind }, i) => {
      const value = document.createElement("span");
      value.className = kind;
      value.textContent = `${name ? `${name} ` : ""}${short(near[i][1])}`;
      return value;
    });
    const step = document.createElement("span");
    step.textContent = `step ${near[0][0].toLocaleString("en")}`;
    this.readout.replaceChildren(...values, step);
  }
}

function drawCharts() {
  const strength = Number(byId("smoothing")?.value ?? 0) / 100;
  for (const chart of charts) chart.draw(strength);
}

function showPicture() {
  const slider = byId("picture-step");
  const step = pictureSteps[slider.value];
  byId("picture-now").textContent = `step ${step.toLocaleString("en")}`;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  for (const picture of document.querySelectorAll("img[data-pictures]")) {
    picture.src = `${picture.dataset.pictures}step-${String(step).padStart(6, "0")}.jpg`;
  }
}

const pictureSteps = courses.length
  ? courses[0].pictures.filter((step) => courses.every(({ pictures }) => pictures.includes(step))) : [];

function wireTraining() {
  if (!courses.length) return;
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const chart = new Chart(figure);
    if (chart.lines.length) charts.push(chart);
    else figure.hidden = true;
  }
  byId("smoothing")?.addEventListener("input", drawCharts);
  new ResizeObserver(drawCharts).observe(byId("charts"));
  if (pictureSteps.length) {
    byId("picture-step").addEventListener("input", showPicture);
    showPicture();
  }
}
