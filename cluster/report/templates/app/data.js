// --- data: the index that is searched, and chunks of prompts that are loaded when they are shown ---
// Data files are scripts that call window.numina: from file:// a page may run scripts, but not fetch.

const KEPT_CHUNKS = 40;
let index; // columns over prompts and clips, see cluster/report/data.py
const chunks = new Map(); // number → promise of its prompts; the latest used last
const waiting = new Map(); // what a data file calls → who waits for it

window.numina = {
  index: (content) => start(content),
  chunk: (number, content) => waiting.get(`chunk ${number}`)?.(content),
  failures: (content) => waiting.get("failures")?.(content),
};

function load(name, address) {
  return new Promise((resolve, reject) => {
    const script = make("script", { src: address });
    waiting.set(name, resolve);
    script.onload = script.onerror = () => {
      waiting.delete(name);
      script.remove();
      reject(new Error(`${decodeURI(address)} can't be read: keep the report's folder beside the page`)); // if it didn't call
    };
    document.head.append(script);
  });
}

function chunk(number) {
  const known = chunks.get(number) ?? load(`chunk ${number}`, index.folder + index.chunks[number][0]);
  chunks.delete(number);
  chunks.set(number, known);
  known.catch(() => chunks.delete(number));
  while (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
  return known;
}

// A prompt by its number: { number, title, targets, clips }.
async function prompt(number) {
  let low = 0, high = index.chunks.length - 1;
  while (low < high) { // the last chunk that begins at or before it
    const middle = (low + high + 1) >> 1;
    if (index.firstOf[middle] <= number) low = middle;
    else high = middle - 1;
  }
  const content = (await chunk(low))[number - index.firstOf[low]];
  return { ...content, number, id: index.ids[number], targets: targetsOf(number) };
}

function targetsOf(number) {
  const flat = index.targets[number], targets = [];
  for (let i = 0; i < flat.length; i += 2) targets.push({ noun: index.nouns[flat[i]], count: flat[i + 1] });
  return targets;
}

function prepareIndex(content) {
  index = content;
  index.firstOf = starts(index.chunks.map(([, prompts]) => prompts));
  index.firstClip = starts(index.clips);
  index.searched = index.prompts.map((text, number) => searchable(`${text} ${index.ids[number] ?? ""}`));
}

function starts(sizes) {
  let sum = 0;
  return sizes.map((size) => (sum += size) - size);
}

function searchable(text) { return text.normalize("NFKC").toLowerCase(); }

// --- elements: all text goes in as text ---

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const number = new Intl.NumberFormat("en");
const percent = (share) => `${share === 0 || share === 1 ? 100 * share : Math.min(99.9, 100 * share).toFixed(1)} %`;
const plural = (count, noun) => `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;
function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return seconds < 3600 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
