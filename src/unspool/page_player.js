/* The player of the page: one video of one result, or of two; its views, objects and timeline. */

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const look = { view: "prediction", opacity: 0.5, outline: true, colours: new Map(), off: new Set(), chosen: new Set() };
const painters = [...document.querySelectorAll("canvas.mask")].map((canvas) => new Painter(canvas));
let layers = []; // one, or two side by side; empty while nothing is shown
let current = -1; // index of the video in the list
let position = 0; // the frame that the reader asked for, or that plays
let painted = -1; // the frame whose objects are on the screen
let opening = 0;

const film = new Film(byId("film"), onFrame, showPlaying);
const record = () => layers[0]?.record;
const lastFrame = () => (record()?.frames ?? 1) - 1;

function say(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

/** Show the video with this index of the list. */
async function open(index, frame = 0) {
  const turn = ++opening;
  film.close();
  const entry = videos[index];
  current = index;
  layers = [];
  painted = -1;
  for (const painter of painters) painter.clear();
  byId("video-title").textContent = entry.name;
  byId("video-facts").textContent = "";
  for (const card of document.querySelectorAll(".card")) {
    card.setAttribute("aria-current", card.dataset.video === String(index));
  }
  for (const id of ["bands", "curves", "strip", "links", "video-warnings"]) byId(id).replaceChildren();
  byId("screen").classList.add("empty");
  if (!entry.pictures) return say(entry.error || WITHOUT_PICTURES[entry.status] || `${entry.name}: ${entry.status}`);
  say("");
  const tried = await Promise.allSettled(bases.map((base) => new Layer(base, entry.name).open()));
  if (turn !== opening) return undefined;
  const opened = tried.filter(({ value }) => value).map(({ value }) => value);
  if (!opened.length) return say(`${tried[0].reason.message}.`);
  if (opened.length < bases.length) say(`Only one of the two results holds ${entry.name}.`);
  return present(opened, Math.min(frame, opened[0].record.frames - 1), turn);
}

const WITHOUT_PICTURES = {
  done: "Only scores were made of this video: there is nothing to look at.",
  running: "Not finished yet: reload later.",
  interrupted: "Interrupted: run the same command again to go on.",
  failed: "This video failed.",
};

async function present(opened, frame, turn) {
  if (opened.length === 2 && opened[0].record.frames !== opened[1].record.frames) {
    say(`Not the same video: ${opened[0].record.frames} frames in A, ${opened[1].record.frames} in B. A is shown.`);
    opened = opened.slice(0, 1);
  }
  layers = opened;
  byId("frame").classList.toggle("alone", layers.length === 1);
  const shown = record();
  byId("screen").classList.remove("empty");
  const [height, width] = shown.display;
  byId("frame").style.setProperty("--ratio", width / height);
  layers.forEach((layer, i) => painters[i].resize(...layer.record.display));
  look.colours = new Map(layers.flatMap((layer) => layer.record.objects.map(({ id, colour }) => [id, colour])));
  for (let id = 1; id < VOID; id++) {
    if (!look.colours.has(id)) look.colours.set(id, FALLBACK[(id - 1) % FALLBACK.length]); // in truth only
  }
  look.off.clear();
  const fps = shown.frames > 1 ? (shown.frames - 1) / (shown.times.at(-1) - shown.times[0]) : 0;
  byId("video-facts").textContent = [
    `${shown.width} × ${shown.height}`,
    `${shown.frames.toLocaleString("en")} frame${shown.frames === 1 ? "" : "s"}`,
    fps ? `${+fps.toFixed(2)} frames/s` : "",
  ].filter(Boolean).join(" · ");
  byId("views").hidden = !shown.truth;
  if (!shown.truth) look.view = "prediction";
  byId("scrub").setAttribute("aria-valuemax", lastFrame());
  byId("frame-last").textContent = ` / ${lastFrame()}`;
  buildTimeline();
  listFiles(shown);
  cutting.open();
  showView();
  goTo(frame, true);
  const source = layers.find((layer) => layer.record.files?.frames);
  await film.open(source ? source.base + encodePath(source.record.files.frames) : "", shown.times);
  if (turn !== opening) return;
  showPlaying();
  goTo(position, true);
}

const encodePath = (path) => path.split("/").map(encodeURIComponent).join("/");

function listFiles({ files, warnings = [] }) {
  const names = {
    overlay: "Overlay video", masks: "Masks", foreground: "Foreground masks", tracks: "Tracks (JSON)", frames: "Plain video",
  };
  for (const [key, label] of Object.entries(names)) {
    if (!files?.[key]) continue;
    const link = element("a", { href: layers[0].base + encodePath(files[key]) }, label);
    if (!files[key].endsWith("/")) link.download = `${record().name}-${files[key].split("/").at(-1)}`;
    byId("links").append(element("li", {}, link));
  }
  byId("video-warnings").append(...warnings.map((warning) => element("li", {}, warning)));
  byId("video-warnings").hidden = !warnings.length;
}

function onFrame(frame) {
  if (!layers.length) return;
  if (film.playing || film.blind) position = frame;
  paint(frame);
  showPosition();
}

function paint(frame) {
  let whole = true;
  layers.forEach((layer, i) => {
    const texts = layer.at(frame, () => layers.includes(layer) && paint(film.blind ? position : film.frame));
    const dressed = texts && cutting.dress(texts, frame);
    if (dressed) painters[i].draw(dressed, look);
    else painters[i].clear();
    whole &&= Boolean(dressed);
    const ahead = frame + layer.record.chunk_frames / 4;
    if (film.playing && ahead <= lastFrame()) layer.at(Math.floor(ahead), () => {});
  });
  painted = whole ? frame : -1;
  byId("unknown").hidden = !whole || look.view === "prediction" || layers[0].at(frame).truth !== null;
}

const repaint = () => layers.length && paint(film.frame);

function goTo(frame, quiet = false) {
  if (!layers.length) return;
  position = Math.max(0, Math.min(lastFrame(), frame));
  film.seek(position);
  showPosition();
  if (!quiet) remember();
}

function step(by) {
  if (film.playing) film.pause();
  goTo(position + by);
}

function togglePlay() {
  if (!layers.length) return;
  if (film.playing) film.pause();
  else film.play();
}

function showPlaying() {
  const name = film.playing ? "pause" : "play";
  byId("play").querySelector("use").setAttribute("href", `#icon-${name}`);
  byId("play").setAttribute("aria-label", film.playing ? "Pause" : "Play");
  byId("screen").classList.toggle("blind", film.blind);
  if (!film.playing && layers.length) {
    showPosition();
    remember();
  }
}

const clock = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  return minutes ? `${minutes}:${(seconds % 60).toFixed(2).padStart(5, "0")}` : `${seconds.toFixed(2)} s`;
};

function showPosition() {
  const time = clock(record().times[position]);
  byId("frame-number").textContent = position;
  byId("frame-time").textContent = time;
  if (!film.playing) {
    byId("scrub").setAttribute("aria-valuenow", position);
    byId("scrub").setAttribute("aria-valuetext", `frame ${position} of ${lastFrame()}, ${time}`);
  }
  if (!film.playing) cutting.showLines();
  byId("timeline").style.setProperty("--at", (position + 0.5) / record().frames);
  for (const cell of document.querySelectorAll("[data-curve]")) {
    const series = curveValues(cell.dataset.curve).filter(({ place }) => place === Number(cell.dataset.place));
    const now = mean(series.map(({ values }) => values[position]));
    cell.textContent = now === null ? "–" : (100 * now).toFixed(1);
  }
}

let rest;
/** After a moment of rest: the address keeps the place, and a screen reader hears the frame. */
function remember() {
  clearTimeout(rest);
  rest = setTimeout(() => {
    if (!layers.length || film.playing) return;
    const place = new URLSearchParams({ video: record().name, frame: position });
    try {
      history.replaceState(null, "", `#${place}`);
    } catch { /* not from disk in every browser */ }
    if (document.activeElement !== byId("scrub")) {
      byId("live").textContent = `Frame ${position} of ${lastFrame()}`;
    }
  }, 700);
}

function setView(view) {
  if (!record()?.truth) return;
  look.view = view;
  showView();
  repaint();
}

function showView() {
  for (const button of byId("views").children) {
    button.setAttribute("aria-pressed", button.dataset.view === look.view);
  }
  byId("legend").hidden = look.view !== "difference";
}

function toggleObject(id) {
  if (!look.colours.has(id)) return;
  if (!look.off.delete(id)) look.off.add(id);
  for (const chip of document.querySelectorAll(`.chip[data-id="${id}"]`)) {
    chip.setAttribute("aria-pressed", !look.off.has(id));
  }
  repaint();
  drawTimeline();
}

// -------------------------------------------------------------------------------------- timeline

const mean = (values) => {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

/** Series of a metric of the objects that are on: [{layer, colour, values}]. */
function curveValues(metric) {
  return layers.flatMap((layer, place) =>
    Object.entries(layer.record.scores?.[metric] ?? {})
      .filter(([id]) => !look.off.has(Number(id)))
      .map(([id, values]) => ({ place, colour: look.colours.get(Number(id)), values })));
}

function row(label, track) {
  return element("div", { class: "row" }, label, track);
}

function buildTimeline() {
  for (const metric of Object.keys(record().scores ?? {})) {
    const now = layers.map((_, place) => {
      const colour = two ? `color: var(--mark-${"ab"[place]})` : "";
      return element("span", { "data-curve": metric, "data-place": place, style: colour });
    });
    const worst = element("button", { type: "button", class: "worst", "aria-label": `Go to the lowest ${metric}`, title: `Go to the lowest ${metric}` }, "lowest");
    worst.addEventListener("click", () => goToLowest(metric));
    const label = element("div", { class: "label curve-label" }, element("b", {}, metric), ...now, worst);
    byId("curves").append(row(label, element("canvas", { class: "track curve", "data-metric": metric, role: "img" })));
  }
  listBands(false);
  fillStrip();
  drawTimeline();
}

const MOST_BANDS = 12; // rows before the reader asks for all

/** A row for each object, or for the largest ones and a button for the others; in the order of ids. */
function listBands(all) {
  const rows = layers.flatMap((layer, place) =>
    (all ? layer.record.objects : largest(layer.record.objects)).map((object) => bandRow(layer, place, object)));
  byId("bands").replaceChildren(...rows);
  const count = layers.reduce((sum, { record: { objects } }) => sum + objects.length, 0);
  if (layers.every(({ record: { objects } }) => objects.length <= MOST_BANDS)) return;
  const text = all ? "Show only the largest" : `Show all ${count.toLocaleString("en")} objects`;
  const button = element("button", { type: "button", class: "more", "aria-expanded": all, "aria-controls": "bands" }, text);
  button.addEventListener("click", () => {
    listBands(!all);
    drawTimeline();
    byId("bands").querySelector(".more").focus({ preventScroll: true });
  });
  const note = element("span", { class: "note" }, all ? "" : `the ${rows.length} that cover most are listed`);
  byId("bands").append(element("div", { class: "row-of" }, button, note));
}

/** Those that cover most over the whole video. */
function largest(objects) {
  const covered = new Map(objects.map(({ id, area }) => [id, area.reduce((a, b) => a + b, 0)]));
  const most = [...objects].sort((a, b) => covered.get(b.id) - covered.get(a.id)).slice(0, MOST_BANDS);
  return objects.filter((object) => most.includes(object));
}

function bandRow(layer, place, { id, name, colour, area }) {
  const chip = element("button", { type: "button", class: "chip", "data-id": id, "aria-pressed": !look.off.has(id), style: `--c: ${colour}` });
  chip.classList.toggle("chosen", look.chosen.has(id));
  if (layers.length === 2) chip.append(element("span", { class: `mark mark-${"ab"[place]}` }, "AB"[place]));
  chip.append(element("span", { class: "swatch" }), element("span", { class: "chip-name" }, name));
  const own = mean(layer.record.scores?.J?.[id] ?? []);
  if (own !== null) chip.append(element("span", { class: "chip-score" }, (100 * own).toFixed(1)));
  chip.addEventListener("click", () => pressChip(id));
  const here = area.filter(Boolean).length;
  const band = element("canvas", {
    class: "track band", role: "img", "data-id": id, "data-place": place,
    "aria-label": `Area of ${name} over time: present in ${here} of ${area.length} frames`,
  });
  return row(element("div", { class: "label" }, chip), band);
}

function goToLowest(metric) {
  const series = curveValues(metric).map(({ values }) => values);
  let lowest = null;
  for (let t = 0; t <= lastFrame(); t++) {
    const value = mean(series.map((values) => values[t]));
    if (value !== null && (lowest === null || value < lowest.value)) lowest = { t, value };
  }
  film.pause();
  if (lowest) goTo(lowest.t);
}

/** As many thumbnails as fit without squeezing, each at its place in time. */
function fillStrip() {
  const { thumbs, name } = record();
  const strip = byId("strip");
  strip.replaceChildren();
  if (!thumbs?.count) return;
  const fitting = Math.floor(strip.clientWidth / (strip.clientHeight * (thumbs.width / thumbs.height)));
  addThumbs(strip, `${layers[0].base}videos/${encodeURIComponent(name)}/thumbs.jpg`, thumbs.count, Math.max(2, fitting));
}

function addThumbs(strip, address, count, wanted) {
  const visible = Math.min(count, wanted);
  for (let i = 0; i < visible; i++) {
    const pick = visible > 1 ? Math.round((i * (count - 1)) / (visible - 1)) : 0;
    const thumb = element("span");
    thumb.style.backgroundImage = `url("${address}")`;
    thumb.style.backgroundSize = `${count * 100}% 100%`;
    thumb.style.backgroundPosition = `${count > 1 ? (pick / (count - 1)) * 100 : 0}% 0`;
    strip.append(thumb);
  }
}

/** A canvas at the screen's resolution; returns its pen and size in CSS pixels. */
function fresh(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return [pen, width, height];
}

function drawTimeline() {
  if (!layers.length) return;
  for (const band of document.querySelectorAll(".band")) drawBand(band);
  for (const curve of document.querySelectorAll(".curve")) drawCurve(curve);
}

/** Height: square root of area against the object's largest; a gap wherever it is gone. */
function drawBand(canvas) {
  const id = Number(canvas.dataset.id);
  const { area } = layers[canvas.dataset.place].record.objects.find((object) => object.id === id);
  const [pen, width, height] = fresh(canvas);
  const most = area.reduce((a, b) => Math.max(a, b), 1);
  const columns = Math.max(1, Math.round(width));
  pen.fillStyle = look.colours.get(id);
  for (let x = 0; x < columns; x++) {
    const from = Math.floor((x * area.length) / columns);
    const to = Math.max(from + 1, Math.floor(((x + 1) * area.length) / columns));
    let [peak, gone] = [0, 0];
    for (let t = from; t < to; t++) {
      peak = Math.max(peak, area[t]);
      gone += area[t] === 0;
    }
    if (!peak) continue;
    const tall = Math.max(2, Math.sqrt(peak / most) * height);
    pen.globalAlpha = (look.off.has(id) ? 0.25 : 1) * (gone ? 0.55 : 1);
    pen.fillRect(x, (height - tall) / 2, 1, tall);
  }
}

function drawCurve(canvas) {
  const { metric } = canvas.dataset;
  const [pen, width, height] = fresh(canvas);
  const style = getComputedStyle(document.documentElement);
  const y = (value) => 2 + (1 - value) * (height - 4);
  pen.fillStyle = style.getPropertyValue("--line");
  for (const level of [0, 0.5, 1]) pen.fillRect(0, Math.round(y(level)), width, 1);
  const series = curveValues(metric);
  const all = layers.map((_, place) => averaged(series.filter((one) => one.place === place)));
  if (layers.length === 1 && series.length > 1) {
    for (const { colour, values } of series) drawLine(pen, values, width, y, colour, 1.5, 0.9);
  }
  all.forEach((values, place) => {
    const ink = layers.length === 2 ? `--mark-${"ab"[place]}` : "--ink";
    drawLine(pen, values, width, y, style.getPropertyValue(ink), 2, 1);
  });
  const low = mean(all[0] ?? []);
  canvas.setAttribute("aria-label", low === null ? `${metric}: not known` : `${metric} over time, mean ${(100 * low).toFixed(1)}`);
}

function averaged(series) {
  if (series.length === 1) return series[0].values;
  return series.length ? series[0].values.map((_, t) => mean(series.map(({ values }) => values[t]))) : [];
}

/** A line with gaps where nothing is known; the lowest value of each column, so that no dip is lost. */
function drawLine(pen, values, width, y, colour, thick, opacity) {
  Object.assign(pen, { strokeStyle: colour, lineWidth: thick, globalAlpha: opacity, lineJoin: "round" });
  pen.beginPath();
  const each = Math.max(1, Math.ceil(values.length / Math.max(1, width)));
  let down = false;
  for (let t = 0; t < values.length; t += each) {
    const known = values.slice(t, t + each).filter((value) => value !== null);
    if (!known.length) {
      down = false;
      continue;
    }
    const at = [((t + each / 2) / values.length) * width, y(Math.min(...known))];
    if (down) pen.lineTo(...at);
    else pen.moveTo(...at);
    down = true;
  }
  pen.stroke();
  pen.globalAlpha = 1;
}

function frameUnder(event) {
  const box = byId("scrub").getBoundingClientRect();
  return Math.floor(((event.clientX - box.left) / box.width) * record().frames);
}

function wireTimeline() {
  const timeline = byId("timeline");
  const over = (event) => layers.length && event.target.closest(".track");
  timeline.addEventListener("pointerdown", (event) => {
    if (!over(event) || event.button) return;
    film.pause();
    timeline.setPointerCapture(event.pointerId);
    timeline.classList.add("dragging");
    goTo(frameUnder(event));
  });
  timeline.addEventListener("pointermove", (event) => {
    if (timeline.classList.contains("dragging")) goTo(frameUnder(event));
    else if (event.pointerType === "mouse") hover(over(event) ? frameUnder(event) : null);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    timeline.addEventListener(end, () => timeline.classList.remove("dragging"));
  }
  timeline.addEventListener("pointerleave", () => hover(null));
  new ResizeObserver(() => {
    if (!layers.length) return;
    fillStrip();
    drawTimeline();
  }).observe(byId("scrub"));
  document.addEventListener("fullscreenchange", drawTimeline);
}

function hover(frame) {
  byId("hover").hidden = frame === null;
  if (frame === null) return;
  const at = Math.max(0, Math.min(lastFrame(), frame));
  const scores = Object.keys(record().scores ?? {}).map((metric) => {
    const value = mean(curveValues(metric).map(({ values }) => values[at]));
    return value === null ? "" : `${metric} ${(100 * value).toFixed(1)}`;
  });
  byId("hover").textContent = [`frame ${at}`, clock(record().times[at]), ...scores].filter(Boolean).join(" · ");
  byId("timeline").style.setProperty("--hover", (at + 0.5) / record().frames);
}
