// The small network: a digit that is drawn, or a photo; the maps of each layer as images, and the probabilities.
"use strict";

const small = readNetwork(JSON.parse($("small-network").textContent));
const pad = $("pad"), pen = pad.getContext("2d", { willReadFrequently: true });
const mapNames = small.layers.filter((layer) => layer.kind !== "fc").map((layer) => layer.name);
const looking = { layer: mapNames[0], photo: false, drawn: false };

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

/** A drawn digit in the middle of 8×8 pixels, as the data set has them, enlarged bilinearly. */
function centreDigit() {
  const side = 64, grey = readPad(side);
  let [top, bottom, left, right] = [side, -1, side, -1];
  grey.forEach((value, place) => {
    if (value < 0.1) return;
    const [y, x] = [Math.floor(place / side), place % side];
    [top, bottom, left, right] = [Math.min(top, y), Math.max(bottom, y), Math.min(left, x), Math.max(right, x)];
  });
  const eight = new Float32Array(64);
  if (bottom < 0) return enlarge(eight, 8, small.side);
  const size = Math.max(bottom - top + 1, (right - left + 1) * 1.25) / 8;
  const [y0, x0] = [(top + bottom + 1) / 2, (left + right + 1) / 2];
  const parts = 8;
  for (let y = 0; y < 8; y++) {
    for (let x = 0; x < 8; x++) {
      let sum = 0;
      for (let part = 0; part < parts * parts; part++) {
        const fromY = Math.floor(y0 + (y + (Math.floor(part / parts) + 0.5) / parts - 4) * size);
        const fromX = Math.floor(x0 + (x + (part % parts + 0.5) / parts - 4) * size);
        if (fromY >= 0 && fromY < side && fromX >= 0 && fromX < side) sum += grey[fromY * side + fromX];
      }
      eight[y * 8 + x] = sum / (parts * parts);
    }
  }
  return enlarge(eight, 8, small.side);
}

/** Bilinear enlargement of a square, pixel centres aligned as in torch's interpolate. */
function enlarge(values, from, to) {
  const places = Array.from({ length: to }, (_, index) => {
    const at = Math.max(0, (index + 0.5) * from / to - 0.5);
    const low = Math.min(Math.floor(at), from - 1);
    return [low, Math.min(low + 1, from - 1), at - low];
  });
  const made = new Float32Array(to * to);
  places.forEach(([top, bottom, down], y) => places.forEach(([left, right, along], x) => {
    const above = values[top * from + left] * (1 - along) + values[top * from + right] * along;
    const below = values[bottom * from + left] * (1 - along) + values[bottom * from + right] * along;
    made[y * to + x] = above * (1 - down) + below * down;
  }));
  return made;
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

function runSmall() {
  const side = looking.photo ? 128 : small.side;
  const grey = looking.photo ? readPad(side) : centreDigit();
  const result = runNetwork(small, grey, side, side);
  looking.maps = result.maps;
  looking.input = {
    channels: 1, height: side, width: side, values: Float32Array.from(grey, (value) => (value - small.mean) / small.std),
  };
  $("value").replaceChildren();
  const maps = result.maps.find((each) => each.name === looking.layer);
  showMaps(maps);
  markChoices("map-layers", looking.layer);
  $("maps-note").textContent = `${looking.layer}: ${maps.channels} maps of ${maps.height}×${maps.width}, ` +
    `for ${looking.photo ? "the photo in grey at" : "the digit at"} ${side}×${side} pixels. Bright is a large value; black is 0. Click a place to see how its value is computed.`;
  const order = result.probabilities.map((value, label) => [value, label]);
  $("probabilities").replaceChildren(...(looking.photo
    ? [Object.assign(document.createElement("p"), { textContent: "The network has learnt digits alone, so it has no class for a photo. Its maps show what its filters respond to: edges in several directions, then corners and strokes." })]
    : order.map(([value, label]) => {
      const bar = document.createElement("div");
      bar.className = "bar";
      const fill = Object.assign(document.createElement("i"), { className: "fc" });
      fill.style.width = `${100 * value}%`;
      const track = document.createElement("span");
      track.append(fill);
      bar.append(Object.assign(document.createElement("b"), { textContent: label }), track,
        Object.assign(document.createElement("em"), { textContent: `${(100 * value).toFixed(1)} %` }));
      return bar;
    })));
  $("probabilities").dataset.probabilities = JSON.stringify(result.probabilities);
}

function drawExample() {
  clearPad();
  const [digit, shades] = small.examples[Math.floor(Math.random() * small.examples.length)];
  const cell = pad.width / 8;
  pen.imageSmoothingEnabled = true;
  const image = new ImageData(8, 8);
  [...shades].forEach((letter, place) => {
    const shade = parseInt(letter, 36) * 15.9375;
    image.data.set([shade, shade, shade, 255], 4 * place);
  });
  const source = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  source.getContext("2d").putImageData(image, 0, 0);
  pen.drawImage(source, 0, 0, 8, 8, cell / 2, cell / 2, pad.width - cell, pad.height - cell);
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
  runSmall();
});
for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { last = null; });
$("clear").addEventListener("click", () => { clearPad(); runSmall(); });
$("example").addEventListener("click", drawExample);
$("photo").addEventListener("change", async () => {
  const [file] = $("photo").files;
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
});
for (const name of mapNames) {
  const button = Object.assign(document.createElement("button"), { textContent: name });
  button.setAttribute("role", "radio");
  button.dataset.value = name;
  button.addEventListener("click", () => { looking.layer = name; runSmall(); });
  $("map-layers").append(button);
}
$("try-text").textContent = small.text;
drawExample();
