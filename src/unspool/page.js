/* The page around the player: list, tables, keys, theme. No framework, no fetch, no reading back of
   pictures: it must work from file://. After page_frames.js and page_player.js, in one script. */

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
  if (target.matches?.("input[type=text]")) return;
  if (target.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
  if (target.closest?.("button, a, summary, input:not([type=range])") && event.key === " ") return; // it is theirs
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
  else byId("frame").addEventListener("click", clickFrame);
  // A button pressed with the mouse gives the keys back to the player; detail 0 is a key press.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".player button, .card");
    if (button && event.detail) button.blur();
  });
  document.addEventListener("pointerup", ({ target }) => target.matches?.("input[type=range]") && target.blur());
  document.addEventListener("keydown", onKey);
  // Pixels need not be square: the film knows how wide they are to be shown.
  byId("film").addEventListener("loadedmetadata", ({ target }) => {
    if (target.videoWidth) byId("frame").style.setProperty("--ratio", target.videoWidth / target.videoHeight);
  });
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

wireTraining();
wireSegments();
wireTimeline();
wireTables();
wireList();
wireTheme();
wireControls();
addEventListener("hashchange", start);

Object.assign(unspool, {
  video: deliver,
  chunk: deliver,
  tree: deliver,
  leaves: deliver,
  attention: deliver,
  cutting,
  painters,
  goTo,
  paint,
  /** What is on the screen, for tests and the curious. */
  state: () => ({
    video: videos[current]?.name, position, painted, playing: film.playing, blind: film.blind,
    charts: charts.length, segments: cutting.state(), view: look.view, off: [...look.off], chunks: layers.map((layer) => [...layer.chunks.keys()]),
  }),
});

start();
