"use strict";
// A latent frame stands for one video frame (the first) or a group of them (the others): num_frames = stride·(F − 1) + 1.
class Clip {
  constructor(card) {
    this.card = card;
    this.video = card.querySelector("video");
    this.overlay = card.querySelector(".overlay");
    this.slider = card.querySelector("input[type=range]");
    this.strips = [...card.querySelectorAll(".strip")];
    this.frames = Number(card.dataset.latentFrames);
    this.fps = Number(card.dataset.fps);
    this.stride = this.frames > 1 ? (Number(card.dataset.numFrames) - 1) / (this.frames - 1) : 1;
    this.shown = "none";
    if (!this.slider || !this.video) return;
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    for (const strip of this.strips)
      strip.addEventListener("click", (event) => {
        const box = strip.getBoundingClientRect();
        this.seek(Math.floor(((event.clientX - box.left) / box.width) * this.frames));
      });
    for (const choice of card.querySelectorAll(".choice input"))
      choice.addEventListener("change", () => this.overlayWith(choice.value));
    for (const event of ["timeupdate", "seeked", "loadedmetadata"])
      this.video.addEventListener(event, () => this.follow());
    this.video.addEventListener("play", () => this.tick());
    new ResizeObserver(() => this.fit()).observe(this.video);
  }
  latentAt(seconds) {
    return Math.min(this.frames - 1, Math.max(0, Math.ceil(Math.floor(seconds * this.fps + 0.01) / this.stride - 1e-6)));
  }
  seek(latent) {
    latent = Math.min(this.frames - 1, Math.max(0, latent));
    this.video.pause();
    this.video.currentTime = (Math.round(latent * this.stride) + 0.5) / this.fps;
    this.mark(latent);
  }
  follow() { this.mark(this.latentAt(this.video.currentTime)); }
  tick() {
    this.follow();
    if (!this.video.paused) requestAnimationFrame(() => this.tick());
  }
  mark(latent) {
    if (this.latent === latent) return;
    this.latent = latent;
    this.slider.value = latent;
    this.slider.setAttribute("aria-valuetext", `latent frame ${latent + 1} of ${this.frames}`);
    this.card.style.setProperty("--now", latent);
    this.overlay.style.backgroundPositionX = this.frames > 1 ? `${(100 * latent) / (this.frames - 1)}%` : "0";
  }
  overlayWith(kind) {
    const strip = this.card.querySelector(`.strip[data-kind="${kind}"] img`);
    this.overlay.style.backgroundImage = strip ? `url(${strip.src})` : "none";
    this.overlay.style.backgroundSize = `${100 * this.frames}% 100%`;
    const choice = this.card.querySelector(`.choice input[value="${kind}"]`);
    if (choice && !choice.disabled) choice.checked = true;
    this.follow();
    this.fit();
  }
  fit() { // the picture's own box inside the video element, which may have bars
    const { videoWidth: w, videoHeight: h, clientWidth: W, clientHeight: H } = this.video;
    if (!w || !this.overlay) return;
    const scale = Math.min(W / w, H / h);
    Object.assign(this.overlay.style, {
      width: `${w * scale}px`, height: `${h * scale}px`, left: `${(W - w * scale) / 2}px`, top: `${(H - h * scale) / 2}px`,
    });
  }
}
const clips = [...document.querySelectorAll(".clip")].map((card) => new Clip(card));
for (const choice of document.querySelectorAll(".bar .choice input"))
  choice.addEventListener("change", () => {
    for (const clip of clips)
      if (clip.slider && clip.video)
        clip.overlayWith(clip.card.querySelector(`.strip[data-kind="${choice.value}"]`) ? choice.value : "none");
  });
for (const button of document.querySelectorAll(".together"))
  button.addEventListener("click", () => {
    const videos = [...button.closest(".prompt").querySelectorAll("video")];
    const start = videos.some((video) => video.paused);
    for (const video of videos) {
      video.currentTime = start ? 0 : video.currentTime;
      if (start) video.play(); else video.pause();
    }
    button.textContent = start ? "Pause all" : "Play together";
  });
