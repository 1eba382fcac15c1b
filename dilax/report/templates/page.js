"use strict";
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const byId = (id) => document.getElementById(id);
  const WRONG = [213, 94, 0, 255], RIGHT = [0, 0, 0, 150], NONE = [0, 0, 0, 0];
  const HIT = [86, 180, 233, 255], ADDED = [240, 228, 66, 255], DIM = [0, 0, 0, 170];
  const last = String(data.sources.length - 1);
  const state = { lit: null, pinned: null };
  const cards = data.images.map(makeCard);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      entry.target.card.visible = entry.isIntersecting;
      if (entry.isIntersecting) paint(entry.target.card);
    }
  }, { rootMargin: "200px" });

  function element(tag, className, parent, text = "") {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    parent.append(made);
    return made;
  }

  function makeCard(image) {
    const root = document.createElement("figure");
    root.className = "card";
    root.dataset.index = image.index;
    const frame = element("div", "frame", root);
    const photo = element("img", "", frame);
    photo.width = image.width;
    photo.height = image.height;
    photo.src = image.photo;
    const card = { image, root, frame, photo, visible: false, maps: new Map() };
    for (const side of ["left", "right"]) {
      const canvas = element("canvas", side, frame);
      canvas.width = image.width;
      canvas.height = image.height;
      canvas.setAttribute("aria-hidden", "true");
      card[side] = { canvas, tag: element("span", `tag ${side}`, frame) };
    }
    card.slider = element("input", "", frame);
    Object.assign(card.slider, { type: "range", min: 0, max: 100, value: 50 });
    card.slider.addEventListener("input", () => cut(card));
    card.caption = element("figcaption", "", root);
    root.card = card;
    return card;
  }

  function cut(moved) {
    const others = byId("together").checked ? cards : [moved];
    for (const card of others) {
      card.slider.value = moved.slider.value;
      card.frame.style.setProperty("--cut", `${moved.slider.value}%`);
    }
  }

  // What one side of all images shows: {view, source}.
  function chosen(side) {
    const view = document.querySelector(`input[name=${side}]:checked`).value;
    const select = byId(`${side}-source`);
    return { view, source: select ? select.value : last };
  }

  function title({ view, source }) {
    const word = view[0].toUpperCase() + view.slice(1);
    const predicted = view === "prediction" || view === "error";
    return predicted && data.sources.length > 1 ? `${word}, ${data.sources[source]}` : word;
  }

  const score = (card, source) => card.image.predictions[source]?.iou ?? null;
  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const unpacked = new DecompressionStream("deflate");
    const stream = new Blob([bytes]).stream().pipeThrough(unpacked);
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function ids(card, name) {
    const packed = name === "truth" ? card.image.truth : card.image.predictions[name]?.ids;
    if (!packed) return null;
    if (!card.maps.has(name)) card.maps.set(name, inflate(packed));
    return card.maps.get(name);
  }

  function colour(view, truth, guess) {
    const lit = state.lit;
    if (view === "error") {
      if (truth === data.ignore) return NONE;
      if (lit === null) return truth === guess ? RIGHT : WRONG;
      if (truth === lit) return guess === lit ? HIT : WRONG;
      return guess === lit ? ADDED : RIGHT;
    }
    const id = view === "truth" ? truth : guess;
    if (id === data.ignore) return NONE;
    return lit === null || id === lit ? [...data.palette[id], 255] : DIM;
  }

  // The colour of each pair of ids is computed once per image.
  async function paintSide(card, side) {
    const { view, source } = chosen(side);
    const { canvas, tag } = card[side];
    const pen = canvas.getContext("2d", { willReadFrequently: true }); // kept in memory
    tag.textContent = title({ view, source });
    const [truth, guess] = await Promise.all([ids(card, "truth"), ids(card, source)]);
    const now = chosen(side);
    if (now.view !== view || now.source !== source) return;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (view === "image" || (view !== "truth" && !guess)) return;
    const picture = pen.createImageData(canvas.width, canvas.height);
    const words = new Uint32Array(picture.data.buffer);
    const known = new Map();
    for (let i = 0; i < words.length; i++) {
      const pair = truth[i] * 256 + (guess ? guess[i] : 0);
      let word = known.get(pair);
      if (word === undefined) {
        const bytes = Uint8Array.from(colour(view, truth[i], guess ? guess[i] : 0));
        word = new Uint32Array(bytes.buffer)[0];
        known.set(pair, word);
      }
      words[i] = word;
    }
    pen.putImageData(picture, 0, 0);
    canvas.dataset.shows = `${view} ${state.lit ?? "all"}`;
  }

  const paint = (card) => Promise.all([paintSide(card, "left"), paintSide(card, "right")]);

  function describe(card) {
    const { source } = chosen("right");
    const value = score(card, source), number = card.image.index;
    const views = `${title(chosen("left"))} left, ${title(chosen("right"))} right`;
    card.photo.alt = `Image ${number}, ${card.image.name}, mean IoU ${percent(value)}`;
    card.slider.setAttribute("aria-label", `Divider in image ${number}: ${views}`);
    card.caption.replaceChildren();
    element("strong", "", card.caption, percent(value)).after(" ");
    element("span", "name", card.caption, `mean IoU · ${card.image.name}`).after(" ");
    const badge = card.badge;
    if (badge) element("span", `badge ${badge.kind}`, card.caption, badge.text);
  }

  function rank() {
    const { source } = chosen("right");
    const ranked = cards.filter((card) => score(card, source) !== null);
    ranked.sort((a, b) => score(a, source) - score(b, source));
    const half = ranked.length / 2;
    ranked.forEach((card, i) => {
      const [kind, place] = i < half ? ["worst", i + 1] : ["best", ranked.length - i];
      card.badge = { kind, text: place === 1 ? kind : `${kind} ${place}` };
    });
    return ranked;
  }

  function arrange() {
    cards.forEach((card) => { card.badge = null; });
    const ranked = rank();
    const rest = cards.filter((card) => !ranked.includes(card));
    const order = byId("order").value;
    let shown = ranked;
    if (order === "best") shown = [...ranked].reverse();
    if (order === "number") shown = [...ranked].sort((a, b) => a.image.index - b.image.index);
    if (order === "extremes") {
      shown = ranked.map((_, i) => ranked[i % 2 ? ranked.length - (i + 1) / 2 : i / 2]);
    }
    byId("cards").replaceChildren(...[...shown, ...rest].map((card) => card.root));
    cards.forEach(describe);
    repaint();
  }

  function repaint() {
    for (const card of cards) if (card.visible) paint(card);
    key();
  }

  function swatch(colours, text) {
    const mark = document.createElement("b");
    mark.style.background = `rgb(${colours.slice(0, 3).join(",")})`;
    return [mark, text];
  }

  function key() {
    const name = state.lit === null ? "" : data.classes[state.lit];
    const parts = name ? [`Showing only ${name}.`] : [];
    if ([chosen("left").view, chosen("right").view].includes("error")) {
      if (name) {
        parts.push(...swatch(HIT, "correct"), ...swatch(WRONG, "missed"), ...swatch(ADDED, "false positive"));
      } else {
        parts.push("Errors:", ...swatch(WRONG, "wrong"), ...swatch([70, 70, 70], "correct"));
      }
    }
    byId("key").replaceChildren(...parts);
  }

  function light(number) {
    if (state.lit === number) return;
    state.lit = number;
    for (const row of document.querySelectorAll("tr[data-class]")) {
      row.classList.toggle("lit", number !== null && Number(row.dataset.class) === number);
    }
    repaint();
  }

  function pin(number) {
    state.pinned = number;
    for (const button of document.querySelectorAll(".legend button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.class) === number));
    }
    light(number);
  }

  for (const button of document.querySelectorAll(".legend button")) {
    const number = Number(button.dataset.class);
    for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => light(number));
    for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => light(state.pinned));
    button.addEventListener("click", () => pin(state.pinned === number ? null : number));
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });
  byId("controls").addEventListener("change", arrange);
  byId("opacity").addEventListener("input", (event) => {
    byId("cards").style.setProperty("--strength", event.target.value / 100);
  });
  arrange();
  for (const card of cards) seen.observe(card.root);
})();
