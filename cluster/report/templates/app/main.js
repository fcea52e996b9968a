// --- the page: hash → state → prompts; controls → state → hash ---

let state, found = [];
const bar = document.getElementById("bar");
const fields = () => [...bar.querySelectorAll("input[name], select[name]")].filter((field) => field.type !== "radio");

function start(content) {
  prepareIndex(content);
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`)).observe(bar);
  if (matchMedia("(max-width: 760px)").matches) for (const plots of document.querySelectorAll(".plots")) plots.open = false;
  document.getElementById("nouns").append(...index.nouns.slice(0, 2000).map((noun) => make("option", { value: noun })));
  watchControls();
  watchKeys();
  watchFailures();
  addEventListener("hashchange", () => {
    if (location.hash === "" || location.hash.includes("=")) render();
  });
  render();
}

// Other values in the state: a new entry of the history, unless `quietly`. True when that changed something.
async function change(values, { quietly = false } = {}) {
  const given = Object.keys(values);
  const page = given.includes("page") || given.every((name) => name === "overlay") ? {} : { page: "1" };
  const hash = hashOf({ ...state, ...values, ...page });
  if (hash === hashOf(state)) return false;
  history[quietly ? "replaceState" : "pushState"](null, "", hash);
  await render();
  return true;
}

async function render() {
  const before = state;
  state = readState();
  showState();
  if (before && hashOf({ ...before, overlay: "off" }) === hashOf({ ...state, overlay: "off" })) {
    for (const sheet of sheets) sheet.lay(state.overlay);
    return;
  }
  found = matching(state);
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE)), page = pageNumber(pages);
  showFound(page, pages);
  await showPage(found.slice((page - 1) * PER_PAGE, page * PER_PAGE), state);
  if (before) toTop();
}

function pageNumber(pages) { return Math.min(pages, Math.max(1, Math.trunc(Number(state.page)) || 1)); }

function turnPage(by) {
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE)), page = pageNumber(pages) + by;
  return page < 1 || page > pages ? false : change({ page: String(page) });
}

function toTop() { // of the list, when it was left behind
  const list = document.getElementById("prompts"), top = list.getBoundingClientRect().top - bar.offsetHeight;
  if (top < 0) scrollBy(0, top);
}

// --- controls ---

function showState() {
  for (const field of fields()) if (field !== document.activeElement || field.name !== "q") field.value = state[field.name];
  for (const choice of bar.querySelectorAll("[name=overlay]")) choice.checked = choice.value === state.overlay;
  const active = FILTERS.filter((name) => state[name]).length;
  document.getElementById("active").textContent = active ? ` (${active})` : "";
  document.getElementById("reset").disabled = !active && !state.q && !state.order;
  for (const part of document.querySelectorAll("[data-judge]")) part.hidden = part.dataset.judge !== state.judge;
}

function showFound(page, pages) {
  const all = index.prompts.length;
  document.getElementById("found").textContent =
    found.length === all ? plural(all, "prompt") : `${number.format(found.length)} of ${plural(all, "prompt")}`;
  bar.elements.page.value = page;
  bar.elements.page.max = pages;
  document.getElementById("pages").textContent = `of ${number.format(pages)}`;
  for (const button of document.querySelectorAll("[data-go]"))
    button.disabled = button.dataset.go === "1" ? page === pages : page === 1;
}

function watchControls() {
  let began = false, timer; // typing is one entry of the history
  const search = async () => {
    clearTimeout(timer);
    const changing = change({ q: bar.elements.q.value }, { quietly: began });
    began = (await changing) || began;
  };
  bar.elements.q.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 120);
  });
  bar.elements.q.addEventListener("blur", () => (began = false));
  bar.addEventListener("submit", (event) => event.preventDefault());
  bar.elements.q.addEventListener("keydown", async (event) => { // Enter leads to the first prompt that was found
    if (event.key !== "Enter") return;
    await search();
    if (sheets.length) reach(sheets[0]);
  });
  bar.addEventListener("change", ({ target }) => {
    if (target.name && target.name !== "q") change({ [target.name]: target.value });
  });
  document.getElementById("reset").addEventListener("click", () => {
    change({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), q: "", order: "" });
    bar.elements.q.value = "";
  });
  for (const button of document.querySelectorAll("[data-go]"))
    button.addEventListener("click", () => turnPage(Number(button.dataset.go)));
  const more = bar.querySelector(".more");
  more.addEventListener("click", () => more.setAttribute("aria-expanded", String(bar.classList.toggle("open"))));
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("a.jump")) addEventListener("hashchange", () => bar.scrollIntoView({ block: "start" }), { once: true });
  });
  document.querySelector(".skip").addEventListener("click", (event) => { // the hash is the state's
    event.preventDefault();
    const list = document.getElementById("prompts");
    list.focus();
    list.scrollIntoView();
  });
}
