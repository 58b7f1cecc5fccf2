"use strict";
/* The page of a result. No framework, no fetch, no reading back of pictures: it must work from file://.

   Data    scripts under data/ call unspool.video(...) and unspool.chunk(...); Layer keeps a few chunks.
   Paint   run lengths -> label map -> pixels of a canvas over the video.
   Film    the <video> frame by frame; without one, a clock.
   Player  one video: view, objects, timeline.
   Page    list, tables, keys, theme. */

const unspool = (() => {
  const { bases, videos } = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const two = bases.length === 2;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // ------------------------------------------------------------------------------------------ data

  const waiting = new Map(); // address of a script -> who wants its content

  function load(address) {
    return new Promise((resolve, reject) => {
      const script = element("script", { src: address });
      waiting.set(script.src, resolve);
      script.onerror = () => reject(new Error(`${decodeURI(address)} is missing`));
      script.onload = () => script.remove();
      document.head.append(script);
    });
  }

  // The script that is running tells whose content this is: two results may hold equal names.
  function deliver(...content) {
    const address = document.currentScript.src;
    waiting.get(address)?.(content.at(-1));
    waiting.delete(address);
  }

  const CHUNKS_KEPT = 4;

  /** One video of one result: its record, and label maps by frame from lazily loaded chunks. */
  class Layer {
    constructor(base, name) {
      this.base = base;
      this.address = `${base}data/${encodeURIComponent(name)}`;
      this.chunks = new Map(); // least recently used first; an entry is a chunk or its promise
    }

    async open() {
      this.record = await load(`${this.address}.js`);
      return this;
    }

    /** {prediction, truth} of a frame as text; null while its chunk is on the way. */
    at(frame, arrived) {
      const number = Math.floor(frame / this.record.chunk_frames);
      const chunk = this.chunk(number, arrived);
      if (!chunk) return null;
      const place = frame - chunk.start;
      return { prediction: chunk.prediction[place], truth: chunk.truth?.[place] ?? null };
    }

    chunk(number, arrived) {
      const known = this.chunks.get(number);
      if (known) this.chunks.delete(number); // to set it again as the youngest
      this.chunks.set(number, known ?? this.fetch(number, arrived));
      while (this.chunks.size > CHUNKS_KEPT) this.chunks.delete(this.chunks.keys().next().value);
      return known && !(known instanceof Promise) ? known : null;
    }

    fetch(number, arrived) {
      return load(`${this.address}-${String(number).padStart(3, "0")}.js`).then(
        (chunk) => {
          if (this.chunks.has(number)) this.chunks.set(number, chunk);
          arrived();
        },
        (error) => say(`${error.message}: the objects of these frames cannot be shown.`),
      );
    }
  }

  // ----------------------------------------------------------------------------------------- paint

  const VOID = 255; // in truth: neither object nor background
  const FALLBACK = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];

  /** Text of runs (label, length as varints) -> labels, row by row. */
  function decode(text, labels) {
    const bytes = atob(text);
    let place = 0;
    const number = () => {
      let value = 0;
      for (let shift = 0; ; shift += 7) {
        const byte = bytes.charCodeAt(place++);
        value |= (byte & 127) << shift;
        if (byte < 128) return value;
      }
    };
    for (let at = 0; place < bytes.length; ) {
      const label = number();
      const end = at + number();
      labels.fill(label, at, end);
      at = end;
    }
  }

  /** "#rrggbb" and opacity 0..1 -> the pixel's word in an ImageData. */
  function word(colour, opacity) {
    const rgb = parseInt(colour.slice(1), 16);
    const swapped = ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
    return ((Math.round(opacity * 255) << 24) | swapped) >>> 0;
  }

  /** Fill of every label, its edge colour on pixels that border on another label; 0 edges: no outline. */
  function fillLabels(out, labels, width, fill, edge) {
    const last = labels.length - width;
    for (let p = 0; p < labels.length; p++) {
      const label = labels[p];
      if (label === 0) {
        out[p] = 0;
      } else if (
        edge[label] &&
        (labels[p - 1] !== label || labels[p + 1] !== label ||
          (p >= width && labels[p - width] !== label) || (p < last && labels[p + width] !== label))
      ) {
        out[p] = edge[label];
      } else {
        out[p] = fill[label];
      }
    }
  }

  const DIFFERENCE = { agree: "#9aa5b1", missed: "#56b4e9", extra: "#d55e00", swapped: "#f0e442" };

  function fillDifference(out, prediction, truth, on, opacity) {
    const agree = word(DIFFERENCE.agree, opacity * 0.7);
    const missed = word(DIFFERENCE.missed, Math.min(1, opacity * 1.6));
    const extra = word(DIFFERENCE.extra, Math.min(1, opacity * 1.6));
    const swapped = word(DIFFERENCE.swapped, Math.min(1, opacity * 1.6));
    for (let p = 0; p < out.length; p++) {
      const known = truth[p];
      const a = on[prediction[p]] ? prediction[p] : 0;
      const b = on[known] ? known : 0;
      if (known === VOID || (a === 0 && b === 0)) out[p] = 0;
      else if (a === b) out[p] = agree;
      else if (a === 0) out[p] = missed;
      else out[p] = b === 0 ? extra : swapped;
    }
  }

  /** The canvas of one layer. */
  class Painter {
    constructor(canvas) {
      this.canvas = canvas;
      this.pen = canvas.getContext("2d");
    }

    resize(height, width) {
      Object.assign(this.canvas, { height, width });
      this.image = this.pen.createImageData(width, height);
      this.out = new Uint32Array(this.image.data.buffer);
      this.prediction = new Uint16Array(height * width);
      this.truth = new Uint16Array(height * width);
    }

    clear() {
      this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    }

    /** texts: {prediction, truth}; look: {view, opacity, outline, colours: Map, off: Set}. */
    draw(texts, look) {
      const { view, opacity } = look;
      if (view !== "prediction" && texts.truth === null) return this.clear();
      if (view !== "truth") decode(texts.prediction, this.prediction);
      if (view !== "prediction") decode(texts.truth, this.truth);
      if (view === "difference") {
        const on = new Uint8Array(65536).fill(1);
        for (const id of look.off) on[id] = 0;
        on[0] = 0;
        fillDifference(this.out, this.prediction, this.truth, on, opacity);
      } else {
        const fill = new Uint32Array(65536);
        const edge = new Uint32Array(65536);
        for (const [id, colour] of look.colours) {
          if (look.off.has(id)) continue;
          fill[id] = word(colour, opacity);
          edge[id] = look.outline ? word(colour, 1) : 0;
        }
        if (view === "truth") fill[VOID] = word("#808080", opacity);
        fillLabels(this.out, view === "truth" ? this.truth : this.prediction, this.canvas.width, fill, edge);
      }
      this.pen.putImageData(this.image, 0, 0);
    }
  }

  // ------------------------------------------------------------------------------------------ film

  /** Largest i with times[i] <= time; a hair early counts, for clocks round to microseconds. */
  function frameAt(times, time) {
    let low = 0;
    let high = times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      const hair = Math.min(0.001, (times[middle] - times[middle - 1]) / 2);
      if (times[middle] <= time + hair) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** The <video>, frame by frame: `shown(i)` is called when frame i stands on the screen.
      Without a playable file a clock takes its place. */
  class Film {
    constructor(video, shown, changed) {
      Object.assign(this, { video, shown, changed, times: [0], playing: false, blind: true, turn: 0 });
      video.addEventListener("seeked", () => this.landed());
      video.addEventListener("play", () => this.setPlaying(true));
      video.addEventListener("pause", () => this.setPlaying(false));
      video.addEventListener("ended", () => this.setPlaying(false));
      video.addEventListener("error", () => this.goBlind());
      this.exact = "requestVideoFrameCallback" in video;
    }

    /** Resolves when the first frame is there, or when it is clear that none will come. */
    open(address, times) {
      this.close();
      const turn = ++this.turn;
      Object.assign(this, { times, blind: !address, wanted: null, seeking: false, shift: times[0], frame: 0 });
      if (!address) return Promise.resolve();
      return new Promise((resolve) => {
        const ready = () => turn === this.turn && resolve();
        this.video.addEventListener("error", ready, { once: true });
        if (!this.exact) this.video.addEventListener("loadeddata", ready, { once: true });
        else {
          this.video.addEventListener("loadeddata", () => setTimeout(ready, 500), { once: true }); // hidden tab
          this.video.requestVideoFrameCallback((_now, { mediaTime }) => {
            if (turn !== this.turn) return;
            if (!this.wanted) this.shift = times[0] - mediaTime; // players may start their clock at zero
            ready();
          });
          this.follow(turn);
        }
        this.video.src = address;
      });
    }

    close() {
      this.pause();
      this.turn++;
      this.blind = true;
      if (this.video.hasAttribute("src")) {
        this.video.removeAttribute("src");
        this.video.load();
      }
    }

    goBlind() {
      if (!this.video.hasAttribute("src")) return;
      this.blind = true;
      this.seeking = false;
      this.changed();
    }

    /** While open: every frame that reaches the screen is reported, with its own time stamp. */
    follow(turn) {
      this.video.requestVideoFrameCallback((_now, { mediaTime }) => {
        if (turn !== this.turn) return;
        this.follow(turn);
        if (!this.seeking || this.playing) this.report(frameAt(this.times, mediaTime + this.shift));
      });
    }

    report(frame) {
      this.frame = frame;
      this.shown(frame);
    }

    /** The middle of the frame's span, so that no rounding leads to its neighbour. */
    middle(frame) {
      const { times } = this;
      const next = times[frame + 1] ?? times[frame] + (frame ? times[frame] - times[frame - 1] : 0.04);
      return (times[frame] + next) / 2 - this.shift;
    }

    seek(frame) {
      this.wanted = frame;
      if (this.blind) return this.report(frame);
      if (this.seeking) return undefined; // `landed` goes on to the newest wish
      this.seeking = true;
      this.video.currentTime = this.middle(frame);
      this.going = frame;
      return undefined;
    }

    landed() {
      this.seeking = false;
      if (this.wanted !== null && this.wanted !== this.going) this.seek(this.wanted);
      else if (!this.playing && this.wanted !== null) this.report(this.wanted);
    }

    async play() {
      const restart = this.frame >= this.times.length - 1;
      if (this.blind) {
        this.setPlaying(true);
        return this.tick(restart ? 0 : this.frame);
      }
      if (restart) this.seek(0);
      this.wanted = null;
      try {
        await this.video.play();
      } catch {
        this.setPlaying(false); // the browser forbids, or the source went away
      }
      if (!this.exact) this.poll();
      return undefined;
    }

    pause() {
      this.video.pause();
      if (this.playing) this.setPlaying(false);
    }

    setPlaying(playing) {
      this.playing = playing;
      this.changed();
    }

    /** Where browsers cannot tell which frame they show: the clock says which one it should be. */
    poll() {
      if (!this.playing) return;
      this.report(frameAt(this.times, this.video.currentTime + this.shift));
      requestAnimationFrame(() => this.poll());
    }

    tick(from) {
      const began = performance.now() / 1000 - this.times[from];
      const { turn } = this;
      const step = () => {
        if (!this.playing || turn !== this.turn) return;
        const frame = frameAt(this.times, performance.now() / 1000 - began);
        if (frame !== this.frame || frame === from) this.report(frame);
        if (frame === this.times.length - 1) this.setPlaying(false);
        else requestAnimationFrame(step);
      };
      step();
    }
  }

  // ---------------------------------------------------------------------------------------- player

  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const look = { view: "prediction", opacity: 0.5, outline: true, colours: new Map(), off: new Set() };
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
    showView();
    goTo(frame, true);
    const source = layers.find((layer) => layer.record.files?.frames);
    await film.open(source ? source.base + encodePath(source.record.files.frames) : "", shown.times);
    if (turn === opening) goTo(position, true);
  }

  const encodePath = (path) => path.split("/").map(encodeURIComponent).join("/");

  function listFiles({ files, warnings = [] }) {
    const names = { overlay: "Overlay video", masks: "Masks", tracks: "Tracks (JSON)", frames: "Plain video" };
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
      if (texts) painters[i].draw(texts, look);
      else painters[i].clear();
      whole &&= Boolean(texts);
      const ahead = frame + layer.record.chunk_frames / 4;
      if (film.playing && ahead <= lastFrame()) layer.at(Math.floor(ahead), () => {});
    });
    painted = whole ? frame : -1;
    if (look.view !== "prediction" && whole) {
      const known = layers[0].at(frame)?.truth !== null;
      byId("legend").dataset.known = known;
    }
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
    byId("timeline").style.setProperty("--at", (position + 0.5) / record().frames);
    for (const cell of document.querySelectorAll("[data-curve]")) {
      const series = curveValues(cell.dataset.curve).filter(({ place }) => place === Number(cell.dataset.place));
      const now = mean(series.map(({ values }) => values[position]));
      cell.textContent = now === null ? "–" : now.toFixed(3);
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
    layers.forEach((layer, place) => {
      for (const object of layer.record.objects) byId("bands").append(bandRow(layer, place, object));
    });
    fillStrip();
    drawTimeline();
  }

  function bandRow(layer, place, { id, name, colour, area }) {
    const chip = element("button", { type: "button", class: "chip", "data-id": id, "aria-pressed": "true", style: `--c: ${colour}` });
    if (layers.length === 2) chip.append(element("span", { class: `mark mark-${"ab"[place]}` }, "AB"[place]));
    chip.append(element("span", { class: "swatch" }), element("span", { class: "chip-name" }, name));
    const own = mean(layer.record.scores?.J?.[id] ?? []);
    if (own !== null) chip.append(element("span", { class: "chip-score" }, own.toFixed(2)));
    chip.addEventListener("click", () => toggleObject(id));
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
    canvas.setAttribute("aria-label", low === null ? `${metric}: not known` : `${metric} over time, mean ${low.toFixed(3)}`);
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
  }

  function hover(frame) {
    byId("hover").hidden = frame === null;
    if (frame === null) return;
    const at = Math.max(0, Math.min(lastFrame(), frame));
    const scores = Object.keys(record().scores ?? {}).map((metric) => {
      const value = mean(curveValues(metric).map(({ values }) => values[at]));
      return value === null ? "" : `${metric} ${value.toFixed(2)}`;
    });
    byId("hover").textContent = [`frame ${at}`, clock(record().times[at]), ...scores].filter(Boolean).join(" · ");
    byId("timeline").style.setProperty("--hover", (at + 0.5) / record().frames);
  }

  // ------------------------------------------------------------------------------------------ page

  function copied(button, text) {
    const done = () => {
      const label = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = label), 1500);
    };
    const byHand = () => {
      const area = element("textarea", { class: "unseen", readonly: "" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      done();
    };
    (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(done, byHand);
  }

  /** Visible rows of a table as lists of strings; `data-value` holds the unrounded number. */
  function tableRows(table) {
    return [...table.rows].filter((line) => !line.hidden)
      .map((line) => [...line.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim()));
  }

  const asText = (rows) => rows.map((cells) => cells.join("\t")).join("\n") + "\n";
  const asCsv = (rows) => rows.map((cells) => cells.map((c) => (/[",\n\r]/.test(c) ? `"${c.replaceAll('"', '""')}"` : c)).join(",")).join("\r\n") + "\r\n";

  function save(name, text) {
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  function wireTables() {
    for (const button of document.querySelectorAll("[data-copy-text]")) {
      button.addEventListener("click", () => copied(button, button.dataset.copyText));
    }
    for (const button of document.querySelectorAll("[data-copy-table]")) {
      button.addEventListener("click", () => copied(button, asText(tableRows(byId(button.dataset.copyTable)))));
    }
    for (const button of document.querySelectorAll("[data-save-table]")) {
      const table = byId(button.dataset.saveTable);
      button.addEventListener("click", () => save(`${table.dataset.name}.csv`, asCsv(tableRows(table))));
    }
    byId("per-object")?.addEventListener("change", (event) => {
      for (const line of document.querySelectorAll("tr.object")) line.hidden = !event.target.checked;
    });
  }

  function wireList() {
    for (const card of document.querySelectorAll(".card")) {
      card.addEventListener("click", () => open(Number(card.dataset.video)));
    }
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        const picture = new Image();
        picture.onload = () => addThumbs(target, picture.src, Math.max(1, Math.round(picture.naturalWidth / 160)), 4);
        picture.onerror = () => target.remove();
        picture.src = target.dataset.strip;
      }
    });
    for (const strip of document.querySelectorAll("[data-strip]")) seen.observe(strip);
    byId("neighbours").hidden = videos.length < 2;
  }

  function neighbour(by) {
    const count = videos.length;
    if (count < 2) return;
    open((current + by + count) % count);
    document.querySelector(`.card[data-video="${current}"]`)?.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  }

  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else byId("screen").requestFullscreen?.();
  }

  /** What a key does; undefined: not ours. */
  function keyAction(event) {
    const far = event.shiftKey ? 10 : 1;
    const onScrub = event.target === byId("scrub");
    switch (event.key) {
      case " ": return togglePlay;
      case "ArrowLeft": return () => step(-far);
      case "ArrowRight": return () => step(far);
      case "ArrowDown": return onScrub ? () => step(-1) : undefined;
      case "ArrowUp": return onScrub ? () => step(1) : undefined;
      case "PageDown": return onScrub ? () => step(-10) : undefined;
      case "PageUp": return onScrub ? () => step(10) : undefined;
      case "Home": return onScrub ? () => step(-position) : undefined;
      case "End": return onScrub ? () => step(lastFrame()) : undefined;
      case "[": return () => neighbour(-1);
      case "]": return () => neighbour(1);
      case "t": case "T": return () => setView(look.view === "truth" ? "prediction" : "truth");
      case "d": case "D": return () => setView(look.view === "difference" ? "prediction" : "difference");
      case "f": case "F": return fullScreen;
      case "?": return () => byId("help").showModal();
      default: {
        const object = layers[0]?.record.objects[Number(event.key) - 1];
        return object && (() => toggleObject(object.id));
      }
    }
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const { target } = event;
    if (target.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
    if (target.closest?.("button, a, summary, input") && event.key === " ") return; // it is theirs
    const action = layers.length || "[]?".includes(event.key) ? keyAction(event) : undefined;
    if (!action) return;
    event.preventDefault();
    action();
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    drawTimeline();
  }

  function wireTheme() {
    byId("theme").addEventListener("click", () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("unspool-theme", theme);
      } catch { /* only for this visit then */ }
      setTheme(theme);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
      setTheme(event.matches ? "dark" : "light");
    });
  }

  function wireControls() {
    const on = (id, act) => byId(id).addEventListener("click", act);
    on("play", togglePlay);
    on("back", () => step(-1));
    on("forward", () => step(1));
    on("previous", () => neighbour(-1));
    on("next", () => neighbour(1));
    on("full", fullScreen);
    on("help-open", () => byId("help").showModal());
    on("outline", () => {
      look.outline = !look.outline;
      byId("outline").setAttribute("aria-pressed", look.outline);
      repaint();
    });
    byId("opacity").addEventListener("input", (event) => {
      look.opacity = event.target.value / 100;
      repaint();
    });
    byId("views").addEventListener("click", (event) => {
      const view = event.target.closest("button")?.dataset.view;
      if (view) setView(view);
    });
    if (two) byId("wipe").addEventListener("input", wipe);
    else byId("frame").addEventListener("click", togglePlay);
    // A button pressed with the mouse gives the keys back to the player; detail 0 is a key press.
    document.addEventListener("click", (event) => {
      const button = event.target.closest?.(".player button, .card");
      if (button && event.detail) button.blur();
    });
    document.addEventListener("pointerup", ({ target }) => target.matches?.("input[type=range]") && target.blur());
    document.addEventListener("keydown", onKey);
    if (!document.fullscreenEnabled) byId("full").hidden = true;
  }

  function wipe() {
    const share = byId("wipe").value;
    byId("frame").style.setProperty("--wipe", `${share}%`);
  }

  /** The place that the address names, else the first video that can be shown. */
  function start() {
    const place = new URLSearchParams(location.hash.slice(1));
    const named = videos.findIndex(({ name }) => name === place.get("video"));
    const first = Math.max(0, videos.findIndex(({ pictures }) => pictures));
    if (!videos.length) return say("No video yet.");
    return open(named >= 0 ? named : first, named >= 0 ? Number(place.get("frame")) || 0 : 0);
  }

  wireTimeline();
  wireTables();
  wireList();
  wireTheme();
  wireControls();
  queueMicrotask(start); // when `unspool` itself has its value, for the scripts that call it

  return {
    video: deliver,
    chunk: deliver,
    goTo,
    /** What is on the screen, for tests and the curious. */
    state: () => ({
      video: videos[current]?.name, position, painted, playing: film.playing, blind: film.blind,
      view: look.view, off: [...look.off], chunks: layers.map((layer) => [...layer.chunks.keys()]),
    }),
  };
})();
