/* Frames of the page: data/*.js -> label maps -> pixels over the <video>, frame by frame.

   Data    scripts under data/ call unspool.video(...) and unspool.chunk(...); Layer keeps a few chunks.
   Paint   run lengths -> label map -> pixels of a canvas over the video.
   Film    the <video> frame by frame; without one, a clock. */

const pageData = JSON.parse(document.getElementById("page-data").textContent);
const { bases, videos } = pageData;
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

const inks = getComputedStyle(document.documentElement);
const DIFFERENCE = Object.fromEntries(
  ["agree", "missed", "extra", "swapped"].map((name) => [name, inks.getPropertyValue(`--${name}`).trim()]),
);

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
    this.prediction = new Uint32Array(height * width);
    this.truth = new Uint16Array(height * width);
  }

  clear() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** texts: {prediction, truth}, or with `fill` or `heat` (page_segments.js);
      look: {view, opacity, outline, colours: Map, off: Set, chosen: Set}. */
  draw(texts, look) {
    const { view, opacity } = look;
    if (texts.heat) return this.drawHeat(texts.heat);
    if (view !== "prediction" && texts.truth === null) return this.clear();
    if (texts.fill) texts.fill(this.prediction, this.canvas.height, this.canvas.width);
    else if (view !== "truth") decode(texts.prediction, this.prediction);
    if (view !== "prediction") decode(texts.truth, this.truth);
    if (view === "difference") {
      const on = new Uint8Array(65536).fill(1);
      for (const id of look.off) on[id] = 0;
      on[0] = 0;
      fillDifference(this.out, this.prediction, this.truth, on, opacity);
    } else {
      const ids = Math.max(65536, ...look.colours.keys()) + 1;
      const fill = new Uint32Array(ids);
      const edge = new Uint32Array(ids);
      for (const [id, colour] of look.colours) {
        if (look.off.has(id)) continue;
        const chosen = look.chosen.has(id);
        const faint = look.chosen.size && !chosen ? 0.5 : 1;
        fill[id] = word(colour, chosen ? Math.min(1, opacity + 0.3) : opacity * faint);
        edge[id] = chosen ? word("#ffffff", 1) : look.outline ? word(colour, faint) : 0;
      }
      if (view === "truth") fill[VOID] = word("#808080", opacity);
      fillLabels(this.out, view === "truth" ? this.truth : this.prediction, this.canvas.width, fill, edge);
    }
    this.pen.putImageData(this.image, 0, 0);
    return undefined;
  }

  /** Bright where attention is: {values, grid, peak}; the square root, so that weak places show too. */
  drawHeat({ values, grid: [h, w], peak }) {
    const { height, width } = this.canvas;
    for (let y = 0; y < height; y++) {
      const row = Math.floor((y * h) / height) * w;
      for (let x = 0; x < width; x++) {
        const share = Math.sqrt(values[row + Math.floor((x * w) / width)] / peak);
        const [red, green, blue] = [255 * Math.min(1, 1.6 * share), 220 * share * share, 90 * (1 - share)];
        this.out[y * width + x] = ((215 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
      }
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
      this.answer = frameAt(this.times, mediaTime + this.shift);
      this.report(this.answer);
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
    this.answer = null;
    this.video.currentTime = this.middle(frame);
    this.going = frame;
    return undefined;
  }

  /**
   * The frame is decoded but not yet on the screen: `follow` hears of that, unless nobody looks.
   * What it hears may also be the last of the seek before, and then nothing more.
   */
  landed() {
    this.seeking = false;
    if (this.wanted !== null && this.wanted !== this.going) return this.seek(this.wanted);
    const { turn, going } = this;
    const silent = () => turn === this.turn && going === this.wanted && this.answer !== going && !this.playing;
    setTimeout(() => silent() && this.report(going), this.exact ? 250 : 0);
    return undefined;
  }

  async play() {
    const at = this.blind ? this.frame : this.wanted ?? this.frame;
    const restart = at >= this.times.length - 1;
    if (this.blind) {
      this.setPlaying(true);
      return this.tick(restart ? 0 : this.frame);
    }
    if (restart) {
      this.seeking = false; // one that is on its way, to the last frame, would swallow this one
      this.seek(0);
    }
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

  /** At rest the picture is the frame that was reported last, though the browser may have been further. */
  setPlaying(playing) {
    const rests = this.playing && !playing && !this.blind;
    this.playing = playing;
    this.changed();
    if (rests) this.seek(this.video.ended ? this.times.length - 1 : this.frame);
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
