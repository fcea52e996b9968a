// --- failures: loaded when a reason is opened, shown by the hundred ---

const FAILURES_SHOWN = 100;
let failures;

function watchFailures() {
  for (const details of document.querySelectorAll("[data-reason]"))
    details.addEventListener("toggle", async () => {
      const place = details.querySelector(".scroll");
      if (!details.open || place.childElementCount) return;
      try {
        failures ??= load("failures", document.body.dataset.failures);
        showFailures(place, (await failures)[Number(details.dataset.reason)]);
      } catch (error) {
        failures = undefined;
        place.replaceChildren(make("p", {}, error.message));
      }
    });
}

function showFailures(place, list) {
  const head = make("tr", {}, ...["prompt", "error", "tries", "key"].map((text) => make("th", { scope: "col" }, text)));
  const body = make("tbody"), more = make("button", { type: "button" });
  const add = () => {
    const from = body.childElementCount;
    for (const [text, error, tries, key] of list.slice(from, from + FAILURES_SHOWN))
      body.append(make("tr", {}, make("td", {}, text ?? "–"), make("td", {}, error), make("td", {}, tries ?? "–"), make("td", {}, make("code", {}, key))));
    more.textContent = `${number.format(list.length - body.childElementCount)} more`;
    more.hidden = body.childElementCount === list.length;
  };
  more.addEventListener("click", add);
  add();
  place.replaceChildren(make("table", { class: "numbers" }, make("thead", {}, head), body), more);
}
