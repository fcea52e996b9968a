// --- prompts: a page of them, each with its samples, and in a sample the strategies side by side ---

const PER_PAGE = 10;
let sheets = []; // of the page that is shown

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      for (const card of sheetOf.get(target)?.all() ?? []) {
        if (isIntersecting) card.arrive();
        else card.leave();
      }
    }
  },
  { rootMargin: "900px 0px" },
);
const sheetOf = new WeakMap(); // element → Sheet

class Sheet {
  constructor(content, state) {
    const { number: group, title, id, targets, clips } = content;
    this.group = group;
    this.targets = targets;
    this.text = index.prompts[group];
    this.overlay = state.overlay;
    this.frames = Math.max(0, ...clips.map((clip) => clip.layout?.frames ?? 0));
    this.cards = samplesOf(clips, index.firstClip[group]).map((sample) => sample.map((attempts) => new Card(this, attempts, state)));
    const heading = make("h2", { id: `prompt-${group}` }, ...title.map(([text, noun]) => (noun === null ? text : make("mark", { class: `noun-${noun % 6}` }, text))));
    this.element = make("section", { class: "prompt", tabindex: "-1", "aria-labelledby": `prompt-${group}` }, heading, this.about(id), ...this.samples());
    sheetOf.set(this.element, this);
    watcher.observe(this.element);
  }

  all() { return this.cards.flat(); }

  about(id) {
    const chips = this.targets.map(({ noun, count }, place) =>
      make("a", { class: "chip jump", href: `#${new URLSearchParams({ noun, count })}`, title: "all prompts that ask for this" }, swatch(place), `${count} × ${noun}`));
    const name = id === null ? null : make("span", {}, "id ", make("a", { class: "jump", href: `#${new URLSearchParams({ q: id })}` }, id));
    this.together = make("button", { type: "button" }, "Play together");
    this.together.addEventListener("click", () => this.play());
    const about = make("div", { class: "about" }, ...chips, name, this.all().some((card) => card.video) ? this.together : null);
    if (this.frames > 1) about.append(this.timeline());
    return about;
  }

  timeline() {
    this.slider = make("input", { type: "range", min: 0, max: this.frames - 1, value: 0, step: 1 });
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    this.shown = make("span", { class: "of", "aria-hidden": "true" });
    this.mark(0);
    return make("label", { class: "timeline" }, "latent frame", this.slider, this.shown);
  }

  samples() {
    return this.cards.map((sample) => {
      const row = make("div", { class: "clips" }, ...sample.map((card) => card.element));
      if (this.cards.length < 2) return row;
      return make("div", {}, make("h3", { class: "sample" }, `sample ${sample[0].clip.sample}`), row);
    });
  }

  // --- time ---

  strideOf(card) {
    return card.stride || (this.frames > 1 ? (card.clip.frames - 1) / (this.frames - 1) : 1) || 1;
  }

  seek(latent) {
    const frame = Math.min(this.frames - 1, Math.max(0, latent));
    for (const card of this.all()) card.seek(frame);
    this.mark(frame);
  }

  mark(latent) {
    this.latent = latent;
    if (!this.slider) return;
    this.slider.value = latent;
    this.slider.setAttribute("aria-valuetext", `latent frame ${latent + 1} of ${this.frames}`);
    this.shown.textContent = `${latent + 1} / ${this.frames}`;
  }

  play() {
    const videos = this.all().map((card) => card.video).filter((video) => video?.hasAttribute("src"));
    const start = videos.every((video) => video.paused);
    for (const video of videos) {
      if (start) {
        video.currentTime = 0;
        video.play().catch(() => {}); // one that can't be played says so itself
      } else video.pause();
    }
  }

  played() {
    const playing = this.all().some((card) => card.video && !card.video.paused);
    this.together.textContent = playing ? "Pause all" : "Play together";
  }

  lay(overlay) {
    this.overlay = overlay;
    for (const card of this.all()) card.paint();
  }

  leave() {
    watcher.unobserve(this.element);
    for (const card of this.all()) card.leave();
  }
}

// Clips of a prompt by sample, and in a sample by chain: the attempts of one strategy.
function samplesOf(clips, first) {
  const samples = new Map();
  clips.forEach((clip, place) => {
    const chains = samples.get(clip.sample) ?? samples.set(clip.sample, new Map()).get(clip.sample);
    const name = clip.chain ? `${clip.chain} ${clip.strategy}` : clip.key;
    chains.set(name, [...(chains.get(name) ?? []), { ...clip, place: first + place }]);
  });
  return [...samples.values()].map((chains) => [...chains.values()]);
}

let wanted = 0; // the latest page that was asked for: an earlier one that comes later isn't shown
async function showPage(groups, state) {
  const turn = ++wanted, list = document.getElementById("prompts");
  try {
    const contents = await Promise.all(groups.map(prompt));
    if (turn !== wanted) return;
    for (const sheet of sheets) sheet.leave();
    sheets = contents.map((content) => new Sheet(content, state));
    list.replaceChildren(...sheets.map((sheet) => sheet.element));
    if (!groups.length) list.append(make("p", { class: "notice" }, "No prompt passes these filters."));
  } catch (error) {
    if (turn === wanted) list.replaceChildren(make("p", { class: "notice" }, error.message));
  }
}
