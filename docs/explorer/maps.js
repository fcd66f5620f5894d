// The small network on a digit that is drawn, or on a photo: the maps of each layer as images, and the probabilities.
"use strict";

const small = readNetwork(JSON.parse($("small-network").textContent));
const pad = $("pad"), pen = pad.getContext("2d", { willReadFrequently: true });
const mapNames = small.layers.filter((layer) => layer.kind !== "fc").map((layer) => layer.name);
const looking = { layer: mapNames[0], photo: false, drawn: false };
const PHOTO_SIDE = 96;  // pixels at which a photo is seen; it divides the side of the pad, and three pools halve it

function clearPad() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, pad.width, pad.height);
  looking.photo = looking.drawn = false;
}

/** Grey values in [0, 1] of the pad, averaged to side × side. */
function readPad(side) {
  const pixels = pen.getImageData(0, 0, pad.width, pad.height).data;
  const grey = new Float32Array(side * side);
  const step = pad.width / side;
  for (let y = 0; y < pad.height; y++) {
    for (let x = 0; x < pad.width; x++) {
      const at = 4 * (y * pad.width + x);
      const light = (0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2]) / 255;
      grey[Math.floor(y / step) * side + Math.floor(x / step)] += light / (step * step);
    }
  }
  return grey;
}

function showMaps(maps) {
  const most = maps.values.reduce((largest, value) => Math.max(largest, value), 1e-9);
  const places = maps.height * maps.width;
  $("maps").replaceChildren(...Array.from({ length: maps.channels }, (_, channel) => {
    const canvas = document.createElement("canvas");
    canvas.width = maps.width;
    canvas.height = maps.height;
    canvas.title = `${maps.name}, channel ${channel}`;
    const image = new ImageData(maps.width, maps.height);
    for (let place = 0; place < places; place++) {
      const value = Math.pow(maps.values[channel * places + place] / most, 0.7);
      image.data.set([255 * Math.min(1, 2.2 * value), 255 * Math.min(1, 1.25 * value * value + 0.35 * value), 90 * value * value + 40 * value, 255], 4 * place);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.min(maps.width - 1, Math.floor((event.clientX - box.left) * maps.width / box.width));
      const y = Math.min(maps.height - 1, Math.floor((event.clientY - box.top) * maps.height / box.height));
      const index = mapNames.indexOf(maps.name);
      const found = explainValue(small, looking.input, looking.maps, index, channel, y, x);
      showValue(found, `${maps.name}, channel ${channel}, row ${y}, column ${x}`);
    });
    return canvas;
  }));
}

/** Compute the maps of what is on the pad, and its probabilities at the network's own size. */
function runSmall() {
  const grey = readPad(small.side);
  const { probabilities, maps: own } = runNetwork(small, grey, small.side, small.side);
  const side = looking.photo ? PHOTO_SIDE : small.side;
  const seen = looking.photo ? readPad(side) : grey;
  looking.maps = looking.photo ? runNetwork(small, seen, side, side).maps : own;
  looking.input = {
    channels: 1, height: side, width: side, values: Float32Array.from(seen, (value) => (value - small.mean) / small.std),
  };
  showLayerMaps();
  showProbabilities(probabilities);
}

let waiting = false;
/** Once before the next frame, however often the pointer moves until then. */
function runSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; runSmall(); });
}

function showLayerMaps() {
  const maps = looking.maps.find((each) => each.name === looking.layer);
  $("value").replaceChildren();
  showMaps(maps);
  markChoices("map-layers", looking.layer);
  $("maps-note").textContent = `${looking.layer}: ${maps.channels} maps of ${maps.height}×${maps.width}, ` +
    `for ${looking.photo ? "the photo in grey at" : "the digit at"} ${looking.input.height}×${looking.input.width} pixels. ` +
    "A bright place is a large value, black is 0. Choose a place in a map to see how its value is computed.";
}

function showProbabilities(probabilities) {
  const bars = probabilities.map((value, label) => {
    const bar = document.createElement("div");
    bar.className = "bar";
    const fill = Object.assign(document.createElement("i"), { className: "fc" });
    fill.style.width = `${100 * value}%`;
    const track = document.createElement("span");
    track.append(fill);
    bar.append(Object.assign(document.createElement("b"), { textContent: label }), track,
      Object.assign(document.createElement("em"), { textContent: `${(100 * value).toFixed(1)} %` }));
    return bar;
  });
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = looking.photo
    ? "The network knows the ten digits and nothing else. For a photo of a handwritten digit that fills the image this is its prediction; for any other photo the probabilities mean nothing, but the maps below still show what its filters respond to."
    : "The probability of each digit.";
  $("probabilities").replaceChildren(...bars, note);
  $("probabilities").dataset.probabilities = JSON.stringify(probabilities);
}

function drawExample() {
  clearPad();
  const [digit, shades] = small.examples[Math.floor(Math.random() * small.examples.length)];
  pen.imageSmoothingEnabled = true;
  const image = new ImageData(8, 8);
  [...shades].forEach((letter, place) => {
    const shade = parseInt(letter, 36) * 15.9375;
    image.data.set([shade, shade, shade, 255], 4 * place);
  });
  const source = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  source.getContext("2d").putImageData(image, 0, 0);
  pen.drawImage(source, 0, 0, pad.width, pad.height);
  pad.title = `a ${digit} from the test split`;
  runSmall();
}

let last = null;
const place = (event) => {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
};
pad.addEventListener("pointerdown", (event) => {
  if (looking.photo || !looking.drawn) clearPad();
  looking.drawn = true;
  last = place(event);
  pad.setPointerCapture(event.pointerId);
});
pad.addEventListener("pointermove", (event) => {
  if (last === null) return;
  const next = place(event);
  Object.assign(pen, { strokeStyle: "#fff", lineWidth: 26, lineCap: "round" });
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...next);
  pen.stroke();
  last = next;
  runSoon();
});
for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { last = null; });
$("clear").addEventListener("click", () => { clearPad(); runSmall(); });
$("example").addEventListener("click", drawExample);

/** Put the middle square of an image file on the pad, and compute its maps. */
async function showFile(file) {
  if (!file) return;
  try {
    const image = await createImageBitmap(file);
    const side = Math.min(image.width, image.height);
    clearPad();
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, pad.width, pad.height);
    looking.photo = true;
    runSmall();
  } catch {
    $("maps-note").textContent = "The browser cannot read this file as an image.";
  }
}
$("photo").addEventListener("change", () => { showFile($("photo").files[0]); $("photo").value = ""; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); showFile(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => showFile(event.clipboardData.files[0]));
for (const name of mapNames) {
  const button = Object.assign(document.createElement("button"), { textContent: name });
  button.setAttribute("role", "radio");
  button.dataset.value = name;
  button.addEventListener("click", () => { looking.layer = name; showLayerMaps(); });
  $("map-layers").append(button);
}
drawExample();
