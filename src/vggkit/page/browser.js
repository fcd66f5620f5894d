// The classifier of a static page: ONNX Runtime computes on this device. The same names as service.js has.
import { Failure } from "./failure.js";
import { decode, fit, locate } from "./preprocess.js";
import * as ort from "./runtime/ort.wasm.min.mjs";

export const privacy = "Images never leave this device: the model runs in this page.";
const HEAT_PIXELS = 224;
const OPACITY = 0.85;

let model = null;
let session = null;
export function setToken() {}

async function fetchWhole(path, progress) {
  const response = await fetch(path).catch(() => null);
  if (!response?.ok) {
    const reason = response ? `HTTP ${response.status}` : "no connection";
    throw new Failure("unreachable", `${path} could not be loaded (${reason}). Reload the page to try again.`);
  }
  const size = Number(response.headers.get("Content-Length"));
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    progress?.(size ? loaded / size : null, loaded);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export async function describe(progress) {
  if (!model) model = JSON.parse(new TextDecoder().decode(await fetchWhole("model.json")));
  if (!session) {
    const bytes = await fetchWhole("model.onnx", progress);
    ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
    // More threads need headers (COOP, COEP) that a plain static host does not send.
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    try {
      session = await ort.InferenceSession.create(bytes, {
        executionProviders: ["wasm"],
        extra: { session: { disable_quant_qdq: "1" } }, // weights stored in int8 become float32 once, not each time
      });
    } catch (error) {
      throw new Failure("unusable", `This browser cannot run the model: ${error.message}`);
    }
  }
  return {
    ...model,
    engine: { name: `ONNX Runtime ${ort.env.versions.web}`, precision: model.precision },
    limits: { max_request_bytes: Infinity, max_images: 1, timeout_seconds: Infinity },
  };
}

export async function classify(files, { top, explain }) {
  const started = performance.now();
  const predictions = [];
  for (const file of files) predictions.push(await classifyOne(file, top, explain));
  return { predictions, seconds: (performance.now() - started) / 1000 };
}

async function classifyOne(file, top, explain) {
  const name = file.name || "pasted image";
  let pixels;
  try {
    pixels = await decode(file);
  } catch {
    const problem = `${name}: this browser cannot read it as an image`;
    return { name, label: null, unknown: false, labels: [], probabilities: [], heatmap: null, problem };
  }
  const crop = model.preprocessing.crop_pixels;
  const input = new ort.Tensor("uint8", new Uint8Array(fit(model.preprocessing, pixels).data), [1, crop, crop, 3]);
  const found = await session.run({ [session.inputNames[0]]: input });
  const probabilities = found.probabilities.data;
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b).slice(0, top);
  const label = model.labels[order[0]];
  const several = model.task === "multi-label";
  const unknown = !several && probabilities[order[0]] < (model.threshold ?? 0);
  const predicted = several ? decide(probabilities) : null;
  return {
    name,
    width: pixels.width,
    height: pixels.height,
    label: several ? predicted.join("; ") || "(no label)" : unknown ? "unknown" : label,
    unknown,
    predicted,
    labels: order.map((place) => model.labels[place]),
    probabilities: order.map((place) => probabilities[place]),
    heatmap:
      explain && found.heatmap
        ? { image: await drawHeat(found.heatmap), label, box: locate(model.preprocessing, pixels.width, pixels.height) }
        : null,
    problem: null,
  };
}

// The classes whose probability reaches their threshold, the most probable first.
function decide(probabilities) {
  const places = [...probabilities.keys()].filter((place) => probabilities[place] >= (1 - 1e-5) * (model.thresholds[place] ?? 0.5));
  return places.sort((a, b) => probabilities[b] - probabilities[a] || a - b).map((place) => model.labels[place]);
}

// The map in inferno's colours, its largest value most opaque; enlarged smoothly by the canvas.
async function drawHeat({ data, dims }) {
  const [height, width] = dims.slice(-2);
  const peak = Math.max(...data);
  const small = new OffscreenCanvas(width, height);
  const context = small.getContext("2d");
  const image = context.createImageData(width, height);
  for (let place = 0; place < data.length; place++) image.data[4 * place + 3] = peak > 0 ? Math.max(0, (255 * data[place]) / peak) : 0;
  context.putImageData(image, 0, 0);
  const large = new OffscreenCanvas(HEAT_PIXELS, HEAT_PIXELS);
  const target = large.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.drawImage(small, 0, 0, HEAT_PIXELS, HEAT_PIXELS);
  const smooth = target.getImageData(0, 0, HEAT_PIXELS, HEAT_PIXELS);
  for (let at = 0; at < smooth.data.length; at += 4) {
    const level = smooth.data[at + 3];
    smooth.data.set(model.heat_colours[level], at);
    smooth.data[at + 3] = OPACITY * level;
  }
  target.putImageData(smooth, 0, 0);
  const bytes = new Uint8Array(await (await large.convertToBlob({ type: "image/png" })).arrayBuffer());
  return `data:image/png;base64,${btoa(String.fromCharCode(...bytes))}`;
}
