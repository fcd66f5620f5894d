// How an image becomes a network's input, as `vggkit.Preprocessing` does it: Pillow's resampling in whole numbers.
// Pixels are {data: Uint8ClampedArray of RGB, width, height}.

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [
    2,
    (x) => {
      const [a, t] = [-0.5, Math.abs(x)];
      if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    },
  ],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const MOST_RESIZED = 2 ** 24;
const BITS = 22; // of a weight's fraction, as Pillow has it for bytes
const HALF = 2 ** (BITS - 1);

// Python's round: halves go to the even number.
const round = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

function listWeights(side, resized, [first, last], [support, weigh]) {
  const scale = side / resized;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: last - first }, (_, place) => {
    const center = (first + place + 0.5) * scale;
    const from = Math.max(0, Math.trunc(center - support * stretch + 0.5));
    const to = Math.min(side, Math.trunc(center + support * stretch + 0.5));
    const weights = Array.from({ length: to - from }, (_, i) => weigh((from + i - center + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { from, weights: weights.map((weight) => Math.trunc((weight / sum) * 2 ** BITS + Math.sign(weight) * 0.5)) };
  });
}

function resizeNearest(pixels, [width, height], columns, rows) {
  // Pillow adds the step up, place by place; the sum decides where a place lies on an edge.
  const list = (side, resized, [first, last]) => {
    const step = side / resized;
    const places = [];
    for (let place = 0, at = step * 0.5; place < last; place++, at += step) if (place >= first) places.push(Math.trunc(at));
    return places;
  };
  const [across, down] = [list(pixels.width, width, columns), list(pixels.height, height, rows)];
  const data = new Uint8ClampedArray(3 * across.length * down.length);
  for (const [y, sourceY] of down.entries()) {
    for (const [x, sourceX] of across.entries()) {
      const from = 3 * (sourceY * pixels.width + sourceX);
      data.set(pixels.data.subarray(from, from + 3), 3 * (y * across.length + x));
    }
  }
  return { data, width: across.length, height: down.length };
}

function resizeAcross({ data, width, height }, weighted) {
  const out = new Uint8ClampedArray(3 * weighted.length * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < weighted.length; x++) {
      const { from, weights } = weighted[x];
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let i = 0, at = 3 * (y * width + from); i < weights.length; i++, at += 3) {
        red += data[at] * weights[i];
        green += data[at + 1] * weights[i];
        blue += data[at + 2] * weights[i];
      }
      const to = 3 * (y * weighted.length + x);
      out[to] = Math.floor(red / 2 ** BITS);
      out[to + 1] = Math.floor(green / 2 ** BITS);
      out[to + 2] = Math.floor(blue / 2 ** BITS);
    }
  }
  return { data: out, width: weighted.length, height };
}

function resizeDown({ data, width }, weighted) {
  const row = 3 * width;
  const out = new Uint8ClampedArray(row * weighted.length);
  for (const [y, { from, weights }] of weighted.entries()) {
    for (let x = 0; x < row; x++) {
      let value = HALF;
      for (let i = 0; i < weights.length; i++) value += data[row * (from + i) + x] * weights[i];
      out[row * y + x] = Math.floor(value / 2 ** BITS);
    }
  }
  return { data: out, width, height: weighted.length };
}

// The part [columns, rows] of the pixels resized to (width, height).
export function resizePart(pixels, [width, height], interpolation, columns, rows) {
  if (interpolation === "nearest") return resizeNearest(pixels, [width, height], columns, rows);
  const filter = FILTERS[interpolation];
  const across = listWeights(pixels.width, width, columns, filter);
  const down = listWeights(pixels.height, height, rows, filter);
  // Only what the part depends on is read.
  const [[left, right], [top, bottom]] = [across, down].map((weighted) => [
    Math.min(...weighted.map(({ from }) => from)),
    Math.max(...weighted.map(({ from, weights }) => from + weights.length)),
  ]);
  const seen = cut(pixels, left, top, right - left, bottom - top);
  for (const each of across) each.from -= left;
  for (const each of down) each.from -= top;
  // The order of Pillow 13, found by trying it with some hundred sizes. Each pass clips what overshoots.
  const isDownFirst = height < pixels.height && pixels.height - height > 2 * (pixels.width - width);
  return isDownFirst ? resizeAcross(resizeDown(seen, down), across) : resizeDown(resizeAcross(seen, across), down);
}

const resize = (pixels, size, interpolation) => resizePart(pixels, size, interpolation, [0, size[0]], [0, size[1]]);

function layOn(colour, side, pixels) {
  const data = new Uint8ClampedArray(side * side * 3);
  for (let i = 0; i < data.length; i++) data[i] = colour[i % 3];
  const [left, top] = [Math.floor((side - pixels.width) / 2), Math.floor((side - pixels.height) / 2)];
  for (let y = 0; y < pixels.height; y++) {
    const row = pixels.data.subarray(3 * y * pixels.width, 3 * (y + 1) * pixels.width);
    data.set(row, 3 * ((top + y) * side + left));
  }
  return { data, width: side, height: side };
}

function withoutFarEnds(pixels, longest) {
  const { width, height } = pixels;
  if (Math.max(width, height) <= longest) return pixels;
  const [left, top] = [Math.max(0, width - longest) >> 1, Math.max(0, height - longest) >> 1];
  return cut(pixels, left, top, Math.min(width, longest), Math.min(height, longest));
}

function cut(pixels, left, top, width, height) {
  const data = new Uint8ClampedArray(3 * width * height);
  for (let y = 0; y < height; y++) {
    const from = 3 * ((top + y) * pixels.width + left);
    data.set(pixels.data.subarray(from, from + 3 * width), 3 * y * width);
  }
  return { data, width, height };
}

const middle = (side, crop) => {
  const first = round((side - crop) / 2);
  return side >= crop ? [first, first + crop] : [0, side];
};

function resizedSize({ resize_pixels: wanted }, width, height) {
  const long = Math.max(1, Math.trunc((wanted * Math.max(width, height)) / Math.min(width, height)));
  return width <= height ? [wanted, long] : [long, wanted];
}

function paddedSize(crop, width, height) {
  const longest = Math.max(width, height);
  return [Math.max(1, round((crop * width) / longest)), Math.max(1, round((crop * height) / longest))];
}

// The network's input as RGB bytes, crop × crop.
export function fit(preprocessing, pixels) {
  const { crop_pixels: crop, fit_mode: mode, interpolation } = preprocessing;
  if (mode === "stretch") return resize(pixels, [crop, crop], interpolation);
  if (mode === "pad") {
    const colour = preprocessing.mean_colour;
    return layOn(colour, crop, resize(pixels, paddedSize(crop, pixels.width, pixels.height), interpolation));
  }
  let size = resizedSize(preprocessing, pixels.width, pixels.height);
  if (size[0] * size[1] > MOST_RESIZED) {
    pixels = withoutFarEnds(pixels, 64 * Math.min(pixels.width, pixels.height));
    size = resizedSize(preprocessing, pixels.width, pixels.height);
  }
  const [columns, rows] = size.map((side) => middle(side, crop));
  const part =
    size[0] === pixels.width && size[1] === pixels.height
      ? cut(pixels, columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
      : resizePart(pixels, size, interpolation, columns, rows);
  return part.width === crop && part.height === crop ? part : layOn([0, 0, 0], crop, part);
}

// Where `fit` looks: left, top, right and bottom edge in pixels of the image.
export function locate(preprocessing, width, height) {
  const { crop_pixels: crop, fit_mode: mode } = preprocessing;
  if (mode === "stretch") return [0, 0, width, height];
  let visible = [width, height];
  let size = mode === "pad" ? paddedSize(crop, width, height) : resizedSize(preprocessing, width, height);
  if (mode === "crop" && size[0] * size[1] > MOST_RESIZED) {
    const longest = 64 * Math.min(width, height);
    visible = visible.map((side) => Math.min(side, longest));
    size = resizedSize(preprocessing, ...visible);
  }
  const edges = [width, height].map((whole, axis) => {
    const [side, resized] = [visible[axis], size[axis]];
    const first = resized >= crop ? round((resized - crop) / 2) : -Math.floor((crop - resized) / 2);
    const [start, scale] = [Math.floor(Math.max(0, whole - side) / 2), side / resized];
    return [start + first * scale, start + (first + crop) * scale];
  });
  return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]];
}

// RGB pixels of a file, upright, transparency laid over white.
export async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8ClampedArray(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return { data, width, height };
}
