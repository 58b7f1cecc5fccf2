/* Segmentations: cut the merge tree, choose, merge and save objects, look where a patch attends.
   All look-ups in data/NAME.tree/*.js; after page_player.js, in one script with it. */

/** Leaf -> the first leaf of its cluster, when so many clusters are left. */
function cutTree({ leaves, joins }, clusters) {
  const parent = Uint32Array.from({ length: leaves }, (_, i) => i);
  const root = (leaf) => {
    while (parent[leaf] !== leaf) leaf = parent[leaf] = parent[parent[leaf]];
    return leaf;
  };
  const made = Math.max(0, Math.min(joins.length / 2, leaves - clusters));
  for (let j = 0; j < made; j++) {
    const a = root(joins[2 * j]);
    const b = root(joins[2 * j + 1]);
    parent[Math.max(a, b)] = Math.min(a, b);
  }
  return parent.map((_, leaf) => root(leaf));
}

/** out[y, x] = grid[floor(y h / H), floor(x w / W)]: nearest, as masks are written. */
function enlarge(grid, [h, w], out, [height, width]) {
  const columns = Uint32Array.from({ length: width }, (_, x) => Math.floor((x * w) / width));
  for (let y = 0; y < height; y++) {
    const from = Math.floor((y * h) / height) * w;
    for (let x = 0; x < width; x++) out[y * width + x] = grid[from + columns[x]];
  }
}

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** The segmentation of the video on the screen; `facts` is null where there is none. */
const cutting = {
  facts: null,
  tree: null, // of data/NAME.tree/tree.js
  parts: null, // leaf -> first leaf of its cluster; null: the published labels
  clusters: null,
  tool: "play",
  suggested: null, // of the record's objects, the one that stands out
  kept: [], // [{name, ids, clusters}], in the order of their numbers in a mask
  attended: null, // {frame, patch, window, q}
  heat: null, // of the frame on the screen: {values, grid, peak}
  store: new Map(), // address -> content or promise

  open() {
    const facts = two ? null : record().segments ?? null;
    Object.assign(this, { facts, tree: null, parts: null, clusters: null, kept: [], attended: null, heat: null });
    this.store.clear();
    look.chosen.clear();
    byId("cutting").hidden = !facts;
    if (!facts) return;
    this.published = look.colours;
    this.suggested = record().objects.find(({ id }) => id === facts.foreground?.object);
    byId("suggestion").hidden = !this.suggested;
    if (this.suggested) byId("suggested").textContent = `Object ${this.suggested.id} stands out (${facts.foreground.cues.join(", ")}): a first mask to track?`;
    byId("granularity").disabled = !facts.tree;
    byId("granularity").value = 500;
    if (facts.tree) this.fetch("tree", (tree) => (this.tree = tree));
    this.use("play");
    this.show();
  },

  /** Content of a file of the video's tree, null until it is there. */
  fetch(name, arrived) {
    const known = this.store.get(name);
    if (known !== undefined) return known instanceof Promise ? null : known;
    const layer = layers[0];
    const turn = load(`${layer.address}.tree/${name}.js`).then(
      (content) => {
        if (layers[0] !== layer) return;
        this.store.set(name, content);
        arrived(content);
      },
      (error) => say(`${error.message}.`),
    );
    this.store.set(name, turn);
    return null;
  },

  // ------------------------------------------------------------------------------- the cut

  cut(clusters) {
    if (!this.tree) return;
    this.clusters = clusters;
    this.parts = cutTree(this.tree, clusters);
    look.colours = new Map();
    const colours = this.facts.colours;
    for (const first of new Set(this.parts)) look.colours.set(first + 1, colours[first % colours.length]);
    this.renew();
  },

  uncut() {
    Object.assign(this, { parts: null, clusters: null });
    look.colours = this.published;
    this.renew();
  },

  renew() {
    look.off.clear();
    look.chosen.clear();
    Object.assign(this, { attended: null, heat: null });
    for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", true);
    this.show();
    repaint();
    drawTimeline();
  },

  slide(value) {
    const [most, least] = [this.facts.tree.leaves, Math.max(1, this.facts.tree.fewest)];
    this.cut(Math.round(Math.exp(Math.log(most) + (Math.log(least) - Math.log(most)) * (value / 1000))));
  },

  /** Leaves of a frame on the grid; null while they are on the way. */
  leaves(frame, again) {
    const number = Math.floor(frame / record().chunk_frames);
    const chunk = this.fetch(`leaves-${String(number).padStart(3, "0")}`, again);
    if (!chunk) return null;
    const grid = new Uint32Array(this.facts.grid[0] * this.facts.grid[1]);
    decode(chunk.leaves[frame - chunk.start], grid);
    return grid;
  },

  /** What is drawn for a frame: the texts as they are, a cut, or where a patch attends; null: not here yet. */
  dress(texts, frame) {
    if (!this.facts) return texts;
    const again = () => layers.length && paint(film.blind ? position : film.frame);
    this.heat = this.attended ? this.attention(frame, again) : null;
    if (this.heat) return { ...texts, heat: this.heat };
    if (!this.parts) return texts;
    const leaves = this.leaves(frame, again);
    if (!leaves) return null;
    const ids = leaves.map((leaf) => this.parts[leaf] + 1);
    if (!film.playing) this.listChips(ids);
    return { ...texts, fill: (out, height, width) => enlarge(ids, this.facts.grid, out, [height, width]) };
  },

  listChips(ids) {
    const area = new Map();
    for (const id of ids) area.set(id, (area.get(id) ?? 0) + 1);
    const most = [...area].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 24);
    const key = most.map(([id]) => id).join();
    if (byId("cut-chips").dataset.key === key) return;
    byId("cut-chips").dataset.key = key;
    byId("cut-chips").replaceChildren(...most.map(([id]) => {
      const style = `--c: ${look.colours.get(id)}`;
      const chip = element("button", { type: "button", class: "chip", "data-id": id, "aria-pressed": !look.off.has(id), style });
      chip.append(element("span", { class: "swatch" }), element("span", { class: "chip-name" }, `object ${id}`));
      chip.addEventListener("click", () => pressChip(id));
      return chip;
    }));
  },

  // ----------------------------------------------------------------------------- attention

  /** Why no patch can be asked here; "" if one can. */
  whyNot(frame) {
    const { attention, why_not: why } = this.facts;
    if (!attention.length) return `Where a patch attends cannot be shown: ${why}.`;
    if (attention.includes(frame)) return "";
    const nearest = attention.reduce((a, b) => (Math.abs(b - frame) < Math.abs(a - frame) ? b : a));
    return `Frame ${frame} is no key frame with queries and keys; the nearest is ${nearest}.`;
  },

  keyFrame(frame, again) {
    const held = this.fetch(`attention-${String(frame).padStart(6, "0")}`, again);
    if (held && !held.q) {
      const [q, k] = [held.queries, held.keys].map(({ levels }) => new Int8Array(bytesOf(levels).buffer));
      Object.assign(held, { q, k, z: new Float32Array(bytesOf(held.z).buffer) });
    }
    return held;
  },

  attend(frame, patch) {
    const why = this.whyNot(frame);
    if (why) return this.note(why);
    this.attended = { frame, patch };
    this.note("Bright: where this patch attends in the key frame that is shown. Click another, or another tool.");
    return repaint();
  },

  /** A of the patch that was clicked, in the key frame that is shown: mean over heads of exp(q k scale - z). */
  attention(frame, again) {
    if (!this.facts.attention.includes(frame)) return null;
    const [own, other] = [this.keyFrame(this.attended.frame, again), this.keyFrame(frame, again)];
    if (!own || !other || own.window !== other.window) return null;
    const { heads, scale } = own;
    const count = own.grid[0] * own.grid[1];
    const channels = own.q.length / heads / count;
    const values = new Float32Array(count);
    for (let head = 0; head < heads; head++) {
      const step = own.queries.steps[head] * other.keys.steps[head] * scale;
      const query = own.q.subarray((head * count + this.attended.patch) * channels);
      const z = own.z[head * count + this.attended.patch];
      for (let n = 0; n < count; n++) {
        const at = (head * count + n) * channels;
        let sum = 0;
        for (let c = 0; c < channels; c++) sum += query[c] * other.k[at + c];
        values[n] += Math.exp(sum * step - z) / heads;
      }
    }
    return { values, grid: own.grid, peak: values.reduce((a, b) => Math.max(a, b), 0) };
  },

  // ------------------------------------------------------------------------------- objects

  use(tool) {
    this.tool = tool;
    for (const button of byId("tools").children) button.setAttribute("aria-pressed", button.dataset.tool === tool);
    byId("frame").dataset.tool = tool;
    this.attended = null;
    this.note(tool === "attend" ? this.whyNot(position) || "Click a patch of this key frame." : tool === "choose" ? "Click objects to choose them, then keep them as one." : "");
    if (painted >= 0) repaint();
  },

  /** A click in the picture, at (x, y) in 0..1. */
  click(x, y) {
    if (painted < 0) return undefined; // what is under the pointer is not there yet
    if (this.tool === "attend") {
      const [h, w] = this.facts.grid;
      return this.attend(position, Math.min(h - 1, Math.floor(y * h)) * w + Math.min(w - 1, Math.floor(x * w)));
    }
    const { height, width } = painters[0].canvas;
    const at = Math.min(height - 1, Math.floor(y * height)) * width + Math.min(width - 1, Math.floor(x * width));
    return this.choose(painters[0].prediction[at]);
  },

  choose(id) {
    if (!id) return;
    if (!look.chosen.delete(id)) look.chosen.add(id);
    this.show();
    repaint();
  },

  /** The object that stands out is chosen, in a frame that shows it. */
  suggest() {
    const { id, area } = this.suggested;
    if (this.clusters !== null) this.uncut();
    this.use("choose");
    if (!look.chosen.has(id)) this.choose(id);
    const most = area.reduce((a, b) => Math.max(a, b), 0);
    if (!area[position]) goTo(area.findIndex((pixels) => 2 * pixels >= most));
  },

  /** What is chosen becomes one object of the mask. */
  keep(name) {
    if (!look.chosen.size) return;
    const ids = [...look.chosen].sort((a, b) => a - b);
    this.kept.push({ name: name.trim() || `object ${this.kept.length + 1}`, ids, clusters: this.clusters });
    look.chosen.clear();
    byId("object-name").value = "";
    this.show();
    repaint();
  },

  drop(index) {
    this.kept.splice(index, 1);
    this.show();
  },

  /** Numbers 1, 2, ... of the kept objects at the video's size, in the frame that is shown; null: not here yet. */
  mask() {
    const { height, width } = record();
    const whole = new Uint8Array(height * width);
    const ids = new Uint32Array(height * width);
    const cuts = new Map(); // clusters -> ids by pixel
    for (const [index, { ids: wanted, clusters }] of this.kept.entries()) {
      if (!cuts.has(clusters)) cuts.set(clusters, this.pixels(clusters, [height, width]));
      const shown = cuts.get(clusters);
      if (!shown) return null;
      const mine = new Set(wanted);
      for (let p = 0; p < ids.length; p++) if (mine.has(shown[p])) whole[p] = index + 1;
    }
    return { whole, height, width };
  },

  pixels(clusters, size) {
    const out = new Uint32Array(size[0] * size[1]);
    if (clusters === null) {
      const texts = layers[0].at(position, () => {});
      if (!texts) return null;
      const display = record().display;
      const small = new Uint32Array(display[0] * display[1]);
      decode(texts.prediction, small);
      enlarge(small, display, out, size);
      return out;
    }
    const leaves = this.leaves(position, () => {});
    if (!leaves) return null;
    const parts = cutTree(this.tree, clusters);
    enlarge(leaves.map((leaf) => parts[leaf] + 1), this.facts.grid, out, size);
    return out;
  },

  async png() {
    const mask = this.mask();
    return mask && encodePng(mask.whole, mask.height, mask.width, this.kept.map(({ name }, i) => `${i + 1} ${name}`).join("\n"));
  },

  get fileName() {
    return `${record().name}-${String(position * this.facts.every).padStart(5, "0")}.png`;
  },

  async save() {
    const file = await this.png();
    if (!file) return this.note("The objects of this frame are still on the way; try again.");
    const address = URL.createObjectURL(new Blob([file], { type: "image/png" }));
    element("a", { href: address, download: this.fileName }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    return this.note(`Saved as ${this.fileName}.`);
  },

  /** Command lines that track what is kept. */
  lines() {
    const { track, from, every } = this.facts;
    const cuts = new Set(this.kept.map(({ clusters }) => clusters));
    const lines = [];
    if (cuts.size === 1) {
      const cut = this.kept[0].clusters === null ? [] : ["--cut", String(this.kept[0].clusters)];
      const objects = this.kept.map(({ ids }) => ids.join("+")).join(",");
      lines.push([...track, "--from", from, ...cut, "--objects", objects]);
    }
    lines.push([...track, "--mask", `${position * every}:${this.fileName}`]);
    return lines.map((words) => words.map(quoted).join(" "));
  },

  note(text) {
    byId("cut-note").textContent = text;
  },

  show() {
    const { facts, clusters, kept } = this;
    byId("published").setAttribute("aria-pressed", clusters === null);
    const cutText = `${clusters} clusters`;
    byId("granularity-now").textContent = clusters === null ? `tau ${facts.tau}` : cutText;
    byId("granularity").setAttribute("aria-valuetext", clusters === null ? "not used" : cutText);
    byId("bands").hidden = clusters !== null;
    byId("cut-chips").hidden = clusters === null;
    byId("choosing").hidden = !look.chosen.size;
    for (const chip of document.querySelectorAll(".chip")) chip.classList.toggle("chosen", look.chosen.has(Number(chip.dataset.id)));
    byId("chosen-now").textContent = `${look.chosen.size} chosen`;
    byId("kept").replaceChildren(...kept.map(({ name, ids }, index) => {
      const drop = element("button", { type: "button", "aria-label": `Remove ${name}` }, "×");
      drop.addEventListener("click", () => this.drop(index));
      const swatch = element("span", { class: "swatch", style: `--c: ${davisColour(index + 1)}` });
      return element("li", {}, swatch, `${index + 1} ${name} `, element("span", { class: "note" }, ids.join("+")), drop);
    }));
    byId("keeping").hidden = !kept.length;
    this.showLines();
  },

  showLines() {
    if (!this.facts || !this.kept.length) return;
    byId("track-lines").replaceChildren(...this.lines().map((line) => {
      const button = element("button", { type: "button" }, "Copy");
      button.addEventListener("click", () => copied(button, line));
      return element("div", { class: "command" }, element("code", { tabindex: "0", "aria-label": "Command that tracks these objects" }, line), button);
    }));
  },

  state() {
    const { clusters, tool, kept, attended, heat } = this;
    return this.facts && {
      clusters, tool, kept, chosen: [...look.chosen], ready: Boolean(this.tree),
      attended: attended && { ...attended, peak: heat?.peak ?? null, at: heat ? heat.values.indexOf(heat.peak) : null },
    };
  },
};

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`);

/** A chip was pressed: on or off, or chosen, as the tool is. */
function pressChip(id) {
  if (cutting.facts && cutting.tool === "choose") cutting.choose(id);
  else toggleObject(id);
}

// --------------------------------------------------------------------------------------- PNG

/** [r, g, b] of an id in the palette of DAVIS: its bits, lowest first, fill r, g, b from the top. */
function davis(id) {
  const rgb = [0, 0, 0];
  for (let shift = 7; id; shift--, id >>= 3) {
    for (let channel = 0; channel < 3; channel++) rgb[channel] |= ((id >> channel) & 1) << shift;
  }
  return rgb;
}

const davisColour = (id) => `rgb(${davis(id).join(" ")})`;

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function pngChunk(type, content) {
  const bytes = new Uint8Array(12 + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...type].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < bytes.length - 4; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(bytes.length - 4, (crc ^ 0xffffffff) >>> 0);
  return bytes;
}

/** An 8-bit palette PNG of ids, row by row; `text` says what they are. */
async function encodePng(ids, height, width, text) {
  const rows = new Uint8Array(height * (width + 1)); // each row begins with its filter, 0
  for (let y = 0; y < height; y++) rows.set(ids.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3], 8); // bits, palette
  const palette = Uint8Array.from({ length: 256 }, (_, id) => id).reduce((all, id) => {
    all.set(davis(id), 3 * id);
    return all;
  }, new Uint8Array(768));
  const words = new TextEncoder().encode(text);
  const comment = new Uint8Array(12 + words.length); // "Comment", not compressed, no language, no translation
  comment.set([67, 111, 109, 109, 101, 110, 116], 0);
  comment.set(words, 12);
  const chunks = [
    Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), pngChunk("IHDR", header), pngChunk("PLTE", palette),
    pngChunk("iTXt", comment), pngChunk("IDAT", packed), pngChunk("IEND", new Uint8Array(0)),
  ];
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

function wireSegments() {
  byId("granularity").addEventListener("input", ({ target }) => cutting.slide(Number(target.value)));
  byId("published").addEventListener("click", () => cutting.uncut());
  byId("tools").addEventListener("click", ({ target }) => {
    const tool = target.closest("button")?.dataset.tool;
    if (tool) cutting.use(tool);
  });
  byId("take-suggestion").addEventListener("click", () => cutting.suggest());
  byId("keep").addEventListener("click", () => cutting.keep(byId("object-name").value));
  byId("object-name").addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters are the name's, not the player's
    if (event.key === "Enter") cutting.keep(event.target.value);
  });
  byId("save-mask").addEventListener("click", () => cutting.save());
}

/** A click in the picture: plays, or what the tool says. */
function clickFrame(event) {
  if (!cutting.facts || cutting.tool === "play") return togglePlay();
  const box = byId("frame").getBoundingClientRect();
  if (film.playing) film.pause();
  return cutting.click((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}
