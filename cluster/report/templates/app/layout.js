// --- layouts: [nouns, F, H, W] in bytes, painted on canvases. Regions' numbers are those of numina.refine.Region ---

const REMOVE = 2, ADD_DISC = 3, ADD_COPY = 4, REFERENCE = 5;
let colours;

function pageColours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  const nouns = Array.from({ length: 6 }, (_, noun) => named(`noun-${noun}`));
  return { nouns, removed: named("removed"), added: named("added"), reference: named("reference"), edge: named("edge") };
}

async function unpack(layout) {
  const packed = Uint8Array.from(atob(layout.planes), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = layout.nouns * layout.frames * layout.height * layout.width;
  const plane = (place) => bytes.subarray(place * size, (place + 1) * size);
  return { ...layout, labels: plane(0), refinedLabels: layout.refined ? plane(1) : null, regions: layout.refined ? plane(2) : null };
}

// One latent frame at `scale` pixels per token, its left edge at x. Instances have their noun's colour and an edge; in a
// refined layout what was removed is hatched, and the edge tells what was added and what it was copied from.
function paintFrame(context, layout, kind, frame, scale, x) {
  colours ??= pageColours();
  const { nouns, frames, height, width } = layout;
  const refined = kind === "refined" && layout.refined;
  const labels = refined ? layout.refinedLabels : layout.labels;
  for (let noun = 0; noun < nouns; noun++) {
    const base = (noun * frames + frame) * height * width;
    const at = (plane, row, column) =>
      row < 0 || column < 0 || row >= height || column >= width ? -1 : plane[base + row * width + column];
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++) {
        const label = at(labels, row, column), region = refined ? at(layout.regions, row, column) : 0;
        if (!label && region !== REMOVE) continue;
        const left = x + column * scale, top = row * scale;
        const plane = label ? labels : layout.regions, own = label || REMOVE;
        context.fillStyle = label ? colours.nouns[noun % colours.nouns.length] : hatch(context);
        context.fillRect(left, top, scale, scale);
        context.fillStyle = edgeColour(label, region);
        paintEdges(context, left, top, scale, (down, right) => at(plane, row + down, column + right) !== own);
      }
  }
}

function edgeColour(label, region) {
  if (!label) return colours.removed;
  if (region === ADD_DISC || region === ADD_COPY) return colours.added;
  return region === REFERENCE ? colours.reference : colours.edge;
}

function paintEdges(context, left, top, scale, differs) {
  const thick = Math.max(1, Math.round(scale / 8));
  if (differs(-1, 0)) context.fillRect(left, top, scale, thick);
  if (differs(1, 0)) context.fillRect(left, top + scale - thick, scale, thick);
  if (differs(0, -1)) context.fillRect(left, top, thick, scale);
  if (differs(0, 1)) context.fillRect(left + scale - thick, top, thick, scale);
}

let stripes;
function hatch(context) {
  if (!stripes) {
    const tile = make("canvas", { width: 8, height: 8 }), pen = tile.getContext("2d");
    pen.strokeStyle = colours.removed;
    pen.lineWidth = 2.5;
    for (const shift of [-8, 0, 8]) {
      pen.moveTo(shift - 1, 9);
      pen.lineTo(shift + 9, -1);
    }
    pen.stroke();
    stripes = context.createPattern(tile, "repeat");
  }
  return stripes;
}

function paintOverlay(canvas, layout, kind, frame) {
  const scale = Math.min(40, Math.max(4, Math.round(640 / layout.width)));
  canvas.width = layout.width * scale; // clears it, too
  canvas.height = layout.height * scale;
  paintFrame(canvas.getContext("2d"), layout, kind, frame, scale, 0);
}

function paintStrip(canvas, layout, kind) {
  const scale = Math.max(2, Math.round(96 / layout.width));
  canvas.width = layout.frames * layout.width * scale;
  canvas.height = layout.height * scale;
  const context = canvas.getContext("2d");
  for (let frame = 0; frame < layout.frames; frame++) paintFrame(context, layout, kind, frame, scale, frame * layout.width * scale);
}
