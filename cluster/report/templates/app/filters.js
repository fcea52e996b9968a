// --- filters: the page's state is the address's hash, so that it can be shared and the back button works ---

const DEFAULTS = {
  q: "", noun: "", count: "", detected: "", strategy: "", verdict: "", change: "", order: "",
  judge: "", overlay: "off", page: "1",
};
const FILTERS = ["noun", "count", "detected", "strategy", "verdict", "change"];

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = { ...DEFAULTS, judge: Object.keys(index.judges)[0] };
  for (const name of Object.keys(state)) if (given.has(name)) state[name] = given.get(name);
  if (!(state.judge in index.judges)) state.judge = Object.keys(index.judges)[0];
  if (!["off", "identified", "refined"].includes(state.overlay)) state.overlay = "off";
  return state;
}

function hashOf(state) {
  const standard = { ...DEFAULTS, judge: Object.keys(index.judges)[0] };
  const given = Object.entries(state).filter(([name, value]) => value !== standard[name]);
  return "#" + new URLSearchParams(given).toString();
}

function verdictWord(accuracy, missing, asked) { // in thousandths, -1 where nobody judged; whether a count is asked
  if (missing) return "missing";
  if (!asked) return "uncounted";
  if (accuracy < 0) return "unjudged";
  return accuracy >= 1000 ? "exact" : accuracy >= 500 ? "close" : "off";
}

// Numbers of the prompts that the state shows, in its order. A prompt is shown when one of its clips passes.
function matching(state) {
  const passes = clipTest(state), words = searchable(state.q).split(/\s+/).filter(Boolean), wanted = targetTest(state);
  const found = [];
  for (let group = 0; group < index.prompts.length; group++) {
    if (!words.every((word) => index.searched[group].includes(word))) continue;
    const targets = wanted(group);
    if (targets === null) continue;
    if (!passes || clipsOf(group).some((clip) => passes(clip, group, targets))) found.push(group);
  }
  return ordered(found, state);
}

function clipsOf(group) {
  return Array.from({ length: index.clips[group] }, (_, place) => index.firstClip[group] + place);
}

// Which of a prompt's targets have the noun and the count; null where none has.
function targetTest({ noun, count }) {
  const name = searchable(noun.trim());
  const named = index.nouns.map((known) => searchable(known));
  const exact = named.includes(name);
  const fits = named.map((known) => !name || (exact ? known === name : known.startsWith(name)));
  return (group) => {
    const flat = index.targets[group], places = [];
    for (let i = 0; i < flat.length; i += 2)
      if (fits[flat[i]] && (!count || flat[i + 1] === Number(count))) places.push(i / 2);
    return places.length || (!name && !count) ? places : null;
  };
}

function clipTest(state) {
  const { strategy, verdict, detected, change } = state;
  if (!strategy && !verdict && !detected && !change) return null;
  const { kept, accuracy, detected: seen } = index.judges[state.judge];
  const keeper = index.strategies.indexOf(strategy);
  return (clip, group, targets) => {
    if (strategy ? !kept[clip].includes(keeper) : !kept[clip].length) return false; // an attempt that nobody keeps
    if (verdict && verdictWord(accuracy[clip], index.missing[clip], index.targets[group].length) !== verdict) return false;
    if (change && changeOf(clip, group, state.judge) !== change) return false;
    return !detected || targets.some((place) => seenAs(detected, seen[clip]?.[place], index.targets[group][2 * place + 1]));
  };
}

function seenAs(wish, found, asked) {
  if (found === null || found === undefined) return false;
  if (wish === "right") return found === asked;
  if (wish === "fewer") return found < asked;
  if (wish === "more") return found > asked;
  return found === Number(wish);
}

// A clip's accuracy less that of the baseline's clip of the same sample, in thousandths; null without either.
function gainOf(clip, group, judge) {
  const { kept, accuracy } = index.judges[judge], baseline = index.strategies.indexOf("baseline");
  if (baseline < 0 || accuracy[clip] < 0 || kept[clip].includes(baseline)) return null;
  const plain = clipsOf(group).find((other) => kept[other].includes(baseline) && index.samples[other] === index.samples[clip]);
  return plain === undefined || accuracy[plain] < 0 ? null : accuracy[clip] - accuracy[plain];
}

function changeOf(clip, group, judge) {
  const gain = gainOf(clip, group, judge);
  return gain === null ? null : gain > 0 ? "better" : gain < 0 ? "worse" : "same";
}

function ordered(groups, state) {
  if (!["worst", "best", "gain", "loss"].includes(state.order)) return groups;
  const { kept, accuracy } = index.judges[state.judge];
  const keeper = index.strategies.indexOf(state.strategy);
  const byGain = state.order === "gain" || state.order === "loss";
  const sign = state.order === "worst" || state.order === "loss" ? 1 : -1;
  const score = new Map(groups.map((group) => {
    const clips = clipsOf(group).filter((clip) => !state.strategy || kept[clip].includes(keeper));
    const values = byGain ? clips.map((clip) => gainOf(clip, group, state.judge)) : clips.map((clip) => accuracy[clip]);
    const known = values.filter((value) => value !== null && (byGain || value >= 0));
    return [group, known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null];
  }));
  const rank = (group) => score.get(group) === null ? Infinity : sign * score.get(group); // the unknown ones last
  return groups.toSorted((a, b) => Math.sign(rank(a) - rank(b)) || a - b);
}
