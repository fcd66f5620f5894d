// The classifier behind `vggkit serve`: each function sends one request. The page knows a classifier by these names alone:
//   privacy                       a sentence about where the images go
//   describe()                    {name, architecture, labels, preprocessing, licence, engine, limits}
//   classify(files, options)      {predictions: [{name, width, height, label, unknown, labels, probabilities,
//                                 heatmap: {image, label, box: [left, top, right, bottom]} | null, problem}], seconds}
// What fails is a Failure.
import { Failure } from "./failure.js";

export const privacy = "Images are sent to this service only to be classified; it stores none of them.";

let token = sessionStorage.getItem("vggkit token") ?? "";
export function setToken(given) {
  token = given;
  sessionStorage.setItem("vggkit token", given);
}

async function request(path, options = {}, limit = 0) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const late = new AbortController();
  const timer = limit ? setTimeout(() => late.abort(), limit * 1000) : null;
  const signals = [late.signal, ...(options.signal ? [options.signal] : [])];
  try {
    const response = await fetch(path, { ...options, headers, signal: AbortSignal.any(signals), cache: "no-store" });
    const body = await response.json().catch(() => null);
    if (response.ok && body) return body;
    throw new Failure(
      body?.error ?? "unreadable",
      body?.message ?? `The service sent something that this page does not understand (HTTP ${response.status}).`,
      {
        predictions: body?.images?.map((image) => ({ ...image, labels: [], probabilities: [], heatmap: null })) ?? null,
        wait: Number(response.headers.get("Retry-After")) || 0,
      },
    );
  } catch (error) {
    if (error instanceof Failure) throw error;
    if (options.signal?.aborted) throw new Failure("cancelled", "Cancelled.");
    if (late.signal.aborted) throw new Failure("timeout", "The service did not answer in time. It may be busy: try again, or send fewer images.");
    throw new Failure("unreachable", "The service does not answer. Is it still running?");
  } finally {
    clearTimeout(timer);
  }
}

let limits = { timeout_seconds: 30 };
export async function describe() {
  const model = await request("model", {}, 15);
  limits = model.limits;
  return model;
}

export async function classify(files, { top, explain, signal }) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name || "pasted image");
  const query = new URLSearchParams({ top, explain });
  try {
    return await request(`predict?${query}`, { method: "POST", body: form, signal }, limits.timeout_seconds + 10);
  } catch (error) {
    if (error.kind === "bad_image" && error.predictions) return { predictions: error.predictions, seconds: 0 };
    throw error;
  }
}
