// --- a card: one strategy's clip of a sample, or all its attempts, of which one is shown at a time ---

const MARKS = { exact: "✓", close: "≈", off: "✗", missing: "✗", unjudged: "", uncounted: "" };

class Card {
  // `attempts` are clips with their number in the index under `place`; `sheet` is the prompt that the card is part of.
  constructor(sheet, attempts, state) {
    this.sheet = sheet;
    this.state = state;
    this.attempts = attempts;
    this.near = false;
    this.latent = 0;
    this.element = make("article", { class: "card" });
    this.show(this.chosen());
  }

  chosen() { // what the filtered strategy keeps, else what the last strategy keeps
    const { kept } = index.judges[this.state.judge], wanted = index.strategies.indexOf(this.state.strategy);
    const by = (clip) => (kept[clip.place].includes(wanted) ? Infinity : Math.max(-1, ...kept[clip.place]));
    return this.attempts.reduce((best, clip) => (by(clip) > by(best) ? clip : best));
  }

  show(clip) {
    const playing = this.video && !this.video.paused;
    this.leave();
    this.clip = clip;
    this.layout = null; // unpacked when the card comes near
    this.stride = clip.layout?.frames > 1 ? (clip.frames - 1) / (clip.layout.frames - 1) : 0;
    const wide = clip.width && clip.height ? clip.width / clip.height : 16 / 9;
    this.element.className = wide < 1.25 ? "card tall" : "card";
    this.element.style.setProperty("--ratio", wide);
    this.element.replaceChildren(this.header(), ...this.tabs(), make("div", { class: "body" }, this.screen(), this.inside()));
    if (this.near) this.arrive();
    if (playing) this.video?.play();
  }

  // --- what stands on it ---

  header() {
    const { clip } = this, how = clip.guided ? "guided" : clip.left_alone ? `not guided, ${clip.left_alone}` : clip.layout_file ? "layout was right, not guided" : "plain";
    const keepers = index.judges[this.state.judge].kept[clip.place].map((name) => index.strategies[name]);
    const others = keepers.filter((name) => name !== clip.strategy);
    const kept = others.length ? make("small", { class: "kept" }, `kept by ${others.join(", ")}`) : null;
    return make("header", {}, make("h3", {}, clip.strategy), make("small", {}, how), kept, this.badge());
  }

  verdict(clip) {
    const accuracy = index.judges[this.state.judge].accuracy[clip.place];
    return { word: verdictWord(accuracy, index.missing[clip.place], this.sheet.targets.length), accuracy: clip.verdicts[this.state.judge]?.accuracy };
  }

  badge() {
    const { word, accuracy } = this.verdict(this.clip);
    if (word === "missing") return make("span", { class: "badge missing" }, `✗ ${this.clip.problem}`);
    if (word === "uncounted") return make("span", { class: "badge unjudged" }, "no count asked");
    if (word === "unjudged") return make("span", { class: "badge unjudged" }, "unjudged");
    const title = `CountAcc by ${this.state.judge}`;
    return make("span", { class: `badge ${word}`, title }, `${MARKS[word]} ${word} · ${percent(accuracy)}`);
  }

  tabs() {
    if (this.attempts.length < 2) return [];
    const { kept } = index.judges[this.state.judge], name = `attempt-${this.attempts[0].key}`;
    const labels = this.attempts.map((clip, place) => {
      const { word, accuracy } = this.verdict(clip);
      const choice = make("input", { type: "radio", name, value: place, checked: clip === this.clip });
      choice.addEventListener("change", () => {
        this.show(clip);
        this.element.querySelector(".attempts input:checked").focus();
      });
      const share = accuracy === undefined || accuracy === null ? "" : ` ${percent(accuracy)}`;
      const mark = kept[clip.place].length ? make("b", { class: "star", title: "kept" }, "★", make("span", { class: "unseen" }, " kept")) : null;
      const text = make("span", {}, `${(clip.attempt ?? place) + 1} `, make("i", { class: `word ${word}` }, `${MARKS[word]} ${word}${share}`), " ", mark);
      return make("label", {}, choice, text);
    });
    return [make("fieldset", { class: "attempts" }, make("legend", {}, "attempt"), ...labels)];
  }

  screen() {
    const { clip } = this, screen = make("div", { class: "screen" });
    this.video = this.overlay = null;
    if (!clip.video) {
      screen.append(make("p", { class: "gone" }, `${clip.file} isn't there`));
      return screen;
    }
    const label = `${clip.strategy}: ${clip.prompt ?? this.sheet.text}`;
    const video = make("video", { loop: true, playsinline: true, preload: "metadata", tabindex: "0", "aria-label": label });
    video.muted = true;
    // Its controls darken the picture, so they are there for who points at it or holds the focus.
    const control = () => (video.controls = video.matches(":hover, :focus") || document.fullscreenElement === video);
    for (const event of ["pointerenter", "pointerleave", "focus", "blur"]) video.addEventListener(event, control);
    video.addEventListener("error", () => {
      if (video.hasAttribute("src")) screen.classList.add("broken");
    });
    for (const event of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(event, () => this.follow());
    for (const event of ["play", "pause"]) video.addEventListener(event, () => this.sheet.played());
    video.addEventListener("play", () => this.tick());
    this.video = video;
    this.overlay = make("canvas", { class: "overlay", "aria-hidden": "true", hidden: true });
    screen.append(video, this.overlay, make("p", { class: "gone" }, `${clip.file} can't be played`));
    return screen;
  }

  inside() {
    return make("div", { class: "inside" }, this.rewritten(), this.counts(), this.strips(), this.facts(), this.row());
  }

  rewritten() {
    return this.clip.prompt ? make("p", { class: "rewritten" }, make("small", {}, "generated with "), this.clip.prompt) : null;
  }

  counts() {
    if (!this.sheet.targets.length) return null;
    const { clip } = this, judged = clip.verdicts[this.state.judge];
    const heads = ["noun", "asked", ...(clip.layout_file ? ["identified"] : []), ...(clip.confidences ? ["confidence"] : []), "detected", ...(judged?.unique ? ["objects"] : []), ...(judged ? ["over time"] : [])];
    const rows = this.sheet.targets.map(({ noun, count }, place) => {
      const frames = judged?.frames[place] ?? [], found = index.judges[this.state.judge].detected[clip.place]?.[place];
      const cells = [make("th", { scope: "row" }, swatch(place), noun), make("td", { class: "num" }, count)];
      if (clip.layout_file) cells.push(countCell(clip.identified[place], count));
      if (clip.confidences) cells.push(make("td", { class: "num" }, clip.confidences[place].toFixed(2)));
      cells.push(countCell(found, count, frames));
      if (judged?.unique) cells.push(countCell(judged.unique[place], count));
      if (judged) cells.push(make("td", {}, frames.length ? spark(frames, count) : null));
      return make("tr", {}, ...cells);
    });
    const head = make("tr", {}, ...heads.map((text, place) => make("th", { scope: "col", class: place && text !== "over time" ? "num" : null }, text)));
    const caption = make("caption", { class: "unseen" }, `Counts of ${clip.strategy}`);
    return make("table", { class: "counts" }, caption, make("thead", {}, head), make("tbody", {}, ...rows));
  }

  strips() {
    this.films = {};
    if (!this.clip.layout) return null;
    const strips = make("div", { class: "layouts" });
    for (const kind of this.clip.layout.refined ? ["identified", "refined"] : ["identified"]) {
      const film = make("canvas", { role: "img", "aria-label": `${kind} layout, ${plural(this.clip.layout.frames, "latent frame")} side by side` });
      const strip = make("div", { class: "strip" }, make("div", { class: "reel" }, film, make("span", { class: "now" })));
      strip.firstChild.style.setProperty("--frames", this.clip.layout.frames);
      strip.firstChild.style.setProperty("--shape", this.clip.layout.width / this.clip.layout.height);
      film.addEventListener("click", (event) => {
        const box = film.getBoundingClientRect();
        this.sheet.seek(Math.floor(((event.clientX - box.left) / box.width) * this.clip.layout.frames));
      });
      this.films[kind] = film;
      strips.append(make("div", {}, make("span", {}, kind), strip));
    }
    return strips;
  }

  facts() {
    const { clip } = this, facts = make("dl", { class: "facts" });
    const add = (name, text, title, className) => facts.append(make("div", { title, class: className }, make("dt", {}, name), make("dd", {}, text)));
    add("seed", clip.seed);
    const stages = Object.entries(clip.timings), seconds = stages.reduce((sum, [, value]) => sum + value, 0);
    if (stages.length) add("time", duration(seconds), stages.map(([stage, value]) => `${stage} ${duration(value)}`).join(", "));
    if (clip.cost) add("rank time", duration(clip.cost), "rank-seconds: GPU-seconds, or seconds times ranks");
    if (clip.strength !== null && clip.strength !== undefined && clip.strength !== 1) add("strength", `× ${clip.strength}`, "of the guidance");
    if (clip.temporal_consistency !== null) add("consistency", clip.temporal_consistency.toFixed(3), "mean cosine of neighbouring frames");
    if (clip.clip_score !== null) add("CLIP", clip.clip_score.toFixed(1), "mean cosine of prompt and frames, times 100");
    if (clip.retries) add("retries", clip.retries);
    if (clip.shortfall) add("no room for", clip.shortfall, "instances that the layout had no room for", "warn");
    return facts;
  }

  row() { // all that a reader needs to find it in the dataset
    const { clip } = this, own = Object.entries(clip.own);
    const named = { key: clip.key, file: clip.file, layout: clip.layout_file, model: clip.model, steps: clip.steps, chain: clip.chain };
    const lines = [...Object.entries(named).filter(([, value]) => value !== null && value !== undefined), ...own];
    const list = make("dl"), details = make("details", { class: "row" }, make("summary", {}, "Row"), list);
    details.addEventListener("toggle", () => {
      list.replaceChildren(...lines.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    });
    return details;
  }

  // --- near and far ---

  arrive() {
    this.near = true;
    if (this.video && !this.video.hasAttribute("src")) this.video.src = this.clip.video;
    if (this.clip.layout && !this.layout) this.unpack(this.clip);
    else this.paint();
  }

  async unpack(clip) {
    const layout = await unpack(clip.layout);
    if (clip !== this.clip || !this.near) return;
    this.layout = layout;
    for (const [kind, film] of Object.entries(this.films)) paintStrip(film, layout, kind);
    this.painted = null;
    this.mark(this.latent);
    this.paint();
  }

  leave() { // what is far out of sight holds no decoder and no picture
    this.near = false;
    if (this.video?.hasAttribute("src")) {
      this.video.pause();
      this.video.removeAttribute("src");
      this.video.load();
    }
    if (this.overlay) this.overlay.width = this.overlay.height = 0;
    for (const film of Object.values(this.films ?? {})) film.width = film.height = 0;
    this.layout = this.painted = null;
  }

  // --- time. A latent frame stands for one video frame (the first) or a group of them (the others) ---

  latentAt(seconds) {
    const frame = Math.floor(seconds * (this.clip.fps ?? 16) + 0.01);
    return Math.min(this.sheet.frames - 1, Math.max(0, Math.ceil(frame / this.sheet.strideOf(this) - 1e-6)));
  }

  seek(latent) {
    if (this.video) {
      this.video.pause();
      this.video.currentTime = (Math.round(latent * this.sheet.strideOf(this)) + 0.5) / (this.clip.fps ?? 16);
    }
    this.mark(latent);
  }

  follow() {
    if (!this.video?.duration) return;
    this.element.style.setProperty("--at", this.video.currentTime / this.video.duration);
    if (this.sheet.frames < 2) return;
    const latent = this.latentAt(this.video.currentTime);
    this.mark(latent);
    if (!this.video.paused) this.sheet.mark(latent);
  }

  tick() {
    this.follow();
    if (this.video && !this.video.paused) requestAnimationFrame(() => this.tick());
  }

  mark(latent) {
    this.latent = latent;
    this.element.style.setProperty("--now", latent);
    for (const film of Object.values(this.films)) {
      const reel = film.parentElement.parentElement, width = film.clientWidth / (this.clip.layout?.frames ?? 1);
      if (reel.scrollWidth > reel.clientWidth) reel.scrollLeft = (latent + 0.5) * width - reel.clientWidth / 2;
    }
    this.paint();
  }

  paint() {
    const kind = this.sheet.overlay === "refined" && !this.clip.layout?.refined ? "identified" : this.sheet.overlay;
    const shown = this.layout && this.overlay && kind !== "off" ? `${kind} ${this.latent}` : null;
    if (!this.overlay || shown === this.painted) return;
    this.painted = shown;
    this.overlay.hidden = shown === null;
    if (shown) paintOverlay(this.overlay, this.layout, kind, Math.min(this.latent, this.layout.frames - 1));
  }
}

function swatch(place) { return make("i", { class: `swatch noun-${place % 6}` }); }

function countCell(found, asked, frames = []) {
  if (found === null || found === undefined) return make("td", { class: "num" }, "–");
  const steady = frames.filter((count) => count === found).length / (frames.length || 1);
  const share = frames.length && steady < 1 ? make("small", { title: "share of frames with this count" }, ` ${percent(steady)}`) : null;
  return make("td", { class: `num ${found === asked ? "right" : "wrong"}` }, found, share);
}

// Detected counts over the frames as a step line, the asked one dashed, in a box of 100 × 24.
function spark(frames, asked) {
  const top = Math.max(...frames, asked, 1) + 0.5, y = (count) => (24 * (1 - count / top)).toFixed(2);
  const points = frames.flatMap((count, place) => [place, place + 1].map((x) => `${((100 * x) / frames.length).toFixed(2)},${y(count)}`));
  const label = `detected per frame: ${Math.min(...frames)} to ${Math.max(...frames)}; the dashed line is the asked count`;
  const line = drawn("line", { x1: 0, x2: 100, y1: y(asked), y2: y(asked) });
  const picture = drawn("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label }, line, drawn("polyline", { points: points.join(" ") }));
  return make("div", { class: "spark" }, picture);
}
