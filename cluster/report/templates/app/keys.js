// --- keys ---

function watchKeys() {
  const dialog = document.getElementById("help"), use = document.getElementById("keys");
  document.getElementById("help-button").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || !use.checked) return;
    const kind = event.target.closest?.("input, select, textarea, button, a, summary, video")?.localName;
    const typing = kind === "select" || kind === "textarea" || (kind === "input" && !["radio", "checkbox", "range"].includes(event.target.type));
    if (typing || (event.key === " " && kind)) return; // the control's own
    if (act(event.key, dialog)) event.preventDefault();
  });
}

function act(key, dialog) {
  const sheet = currentSheet(), overlays = { 1: "off", 2: "identified", 3: "refined" };
  if (key === "j" || key === "k") step(key === "j" ? 1 : -1);
  else if (key === "n" || key === "p") turnPage(key === "n" ? 1 : -1);
  else if (key === " ") (sheet ?? sheets[0])?.play();
  else if (key === "[" || key === "]") (sheet ?? sheets[0])?.seek(sheet.latent + (key === "]" ? 1 : -1));
  else if (key in overlays) change({ overlay: overlays[key] });
  else if (key === "/") document.querySelector("#bar [name=q]").focus();
  else if (key === "?") dialog.showModal();
  else return false;
  return true;
}

// The prompt that holds the focus, while it can be seen; else the first below the bar.
function currentSheet() {
  const top = document.getElementById("bar").getBoundingClientRect().bottom;
  const seen = sheets.filter(({ element }) => {
    const box = element.getBoundingClientRect();
    return box.bottom > top + 40 && box.top < innerHeight;
  });
  return seen.find(({ element }) => element.contains(document.activeElement)) ?? seen[0];
}

async function step(by) {
  const focused = sheets.find(({ element }) => element.contains(document.activeElement));
  const current = currentSheet(), place = sheets.indexOf(current);
  const next = current === undefined ? 0 : current === focused || by < 0 ? place + by : place;
  if (next >= 0 && next < sheets.length) return reach(sheets[next]);
  if (await turnPage(by)) reach(sheets.at(by > 0 ? 0 : -1));
}

function reach(sheet) {
  sheet.element.focus({ preventScroll: true });
  sheet.element.scrollIntoView({ block: "start" });
}
