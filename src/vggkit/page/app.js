// The page: images come in by drop, paste, choice or camera, go to the backend in batches, and come back as cards.
import { makeCard, setHeat, writeCsv } from "./results.js";

const backend = await import(document.querySelector('meta[name="backend"]').content);
const at = (id) => document.getElementById(id);
const [status, alert, results] = [at("status"), at("alert"), at("results")];

let model = null; // what the backend says of itself
let shown = []; // {file, prediction}, as the cards stand
let queue = []; // files that wait
let working = null; // the AbortController of the batch at work

const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const megabytes = (bytes) => `${(bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`);

function say(text, { busy = false, action = null } = {}) {
  status.textContent = text;
  status.classList.toggle("busy", busy);
  if (action) status.append(makeButton(...action));
}

function complain(text, action = null) {
  alert.hidden = !text;
  alert.textContent = text ?? "";
  if (text && action) alert.append(makeButton(...action));
}

function makeButton(words, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button";
  button.textContent = words;
  button.addEventListener("click", act);
  return button;
}

async function start() {
  complain(null);
  try {
    model = await backend.describe((share, bytes) => {
      at("about").textContent = `Loading the model, ${share === null ? megabytes(bytes) : `${Math.floor(100 * share)} %`}…`;
    });
  } catch (error) {
    at("about").textContent = "";
    if (error.kind === "unauthorized") return askForToken(start);
    return complain(error.message, ["Try again", start]);
  }
  at("title").textContent = model.name;
  document.title = `${model.name} · vggkit`;
  const crop = model.preprocessing?.crop_pixels;
  const about = [...(model.architecture === model.name ? [] : [model.architecture]), plural(model.labels.length, "class", "classes")];
  if (crop) about.push(`${crop} × ${crop} pixels`);
  if (model.engine) about.push(`${model.engine.name}, ${model.engine.precision}`);
  if (model.licence) about.push(model.licence);
  at("about").textContent = about.join(" · ");
  const { max_images: count, max_request_bytes: bytes } = model.limits;
  at("limits").textContent = Number.isFinite(bytes) ? `Up to ${megabytes(bytes)} each.` : "";
  at("privacy").textContent = backend.privacy;
  if (model.explains === null) {
    at("explain").checked = false;
    at("explain").disabled = true;
    followOptions();
  }
  if (queue.length) work();
}

function askForToken(then) {
  const dialog = at("token-dialog");
  at("token").value = "";
  dialog.addEventListener(
    "close",
    () => {
      if (dialog.returnValue !== "use") return complain("Without the token nothing can be classified.", ["Enter it", () => askForToken(then)]);
      backend.setToken(at("token").value);
      then();
    },
    { once: true },
  );
  dialog.returnValue = "";
  dialog.showModal();
}

function add(files) {
  if (!files.length) return;
  complain(null);
  const images = files.filter((file) => !file.type || file.type.startsWith("image/"));
  const others = files.length - images.length;
  if (others) {
    const names = files.filter((file) => !images.includes(file)).slice(0, 3).map((file) => file.name).join(", ");
    complain(`${plural(others, "file")} left out, not an image: ${names}${others > 3 ? ", …" : ""}`);
  }
  queue.push(...images);
  if (model && images.length && !working) work();
}

function takeBatch() {
  const { max_images: count, max_request_bytes: bytes } = model.limits;
  const batch = [];
  let size = 0;
  while (queue.length && batch.length < Math.min(count, 16)) {
    const room = bytes * 0.98 - 2048; // the form's own bytes
    if (queue[0].size > room) {
      if (batch.length) break;
      const file = queue.shift();
      show(file, { name: file.name, labels: [], probabilities: [], heatmap: null, problem: `${file.name}: has ${megabytes(file.size)}, more than the ${megabytes(bytes)} that are accepted` });
      continue;
    }
    if (size + queue[0].size > room) break;
    size += queue[0].size;
    batch.push(queue.shift());
  }
  return batch;
}

async function work() {
  working = new AbortController();
  const total = { images: 0, seconds: 0, problems: 0 };
  const began = performance.now();
  const cancel = () => {
    queue = [];
    working?.abort();
  };
  for (let batch = takeBatch(); batch.length; batch = takeBatch()) {
    const left = batch.length + queue.length;
    say(`Classifying ${plural(left, "image")}…`, { busy: true, action: ["Cancel", cancel] });
    const options = { top: Number(at("top").value), explain: at("explain").checked, signal: working.signal };
    try {
      const answer = await backend.classify(batch, options);
      answer.predictions.forEach((prediction, place) => show(batch[place], prediction));
      total.images += batch.length;
      total.seconds += answer.seconds;
      total.problems += answer.predictions.filter((each) => each.problem).length;
    } catch (error) {
      if (error.kind === "overloaded") {
        queue.unshift(...batch);
        const wait = Math.min(error.wait || 1, 30);
        say(`The service is busy; trying again in ${wait} s…`, { busy: true, action: ["Cancel", cancel] });
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, wait * 1000);
          working.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
        });
        if (working.signal.aborted) queue = [];
        continue;
      }
      working = null;
      if (error.kind === "cancelled") return say("Cancelled.");
      say("");
      const again = () => {
        complain(null);
        queue.unshift(...batch);
        work();
      };
      if (error.kind === "unauthorized") return askForToken(again);
      return complain(error.message, ["Try again", again]);
    }
  }
  working = null;
  const whole = (performance.now() - began) / 1000;
  if (!total.images) return say("");
  const good = total.images - total.problems;
  const failed = total.problems ? `, ${total.problems.toLocaleString("en")} could not be classified` : "";
  say(`${plural(good, "image")} classified in ${seconds(total.seconds || whole)}${failed}.`);
}

function show(file, prediction) {
  shown.push({ file, prediction });
  results.append(makeCard(file, prediction));
  results.classList.toggle("single", shown.length === 1);
  at("drop").classList.add("compact");
  at("results-section").hidden = false;
  followOptions();
}

function clear() {
  queue = [];
  working?.abort();
  for (const card of results.children) card.dispatchEvent(new Event("remove-card"));
  results.replaceChildren();
  shown = [];
  at("results-section").hidden = true;
  at("drop").classList.remove("compact");
  complain(null);
  say("");
  at("files").focus();
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([writeCsv(shown)], { type: "text/csv" }));
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function followOptions() {
  const explained = at("explain").checked;
  at("strength").disabled = !explained;
  at("strength-label").classList.toggle("off", !explained);
  at("strength-value").textContent = `${at("strength").value} %`;
  setHeat(results, { shown: explained, strength: Number(at("strength").value) });
}

// A heatmap that was not computed, or another number of classes, needs new predictions of the same images.
function predictAgain() {
  followOptions();
  const missing = shown.some(({ prediction }) => !prediction.problem && !prediction.heatmap);
  if (!shown.length || working || (this === at("explain") && !(at("explain").checked && missing))) return;
  const files = shown.map(({ file }) => file);
  clear();
  this.focus();
  add(files);
}

function takeChosen(input) {
  add([...input.files]);
  input.value = ""; // so that the same file can be chosen again
}
for (const name of ["files", "camera"]) {
  at(name).addEventListener("change", (event) => takeChosen(event.target));
  takeChosen(at(name)); // what was chosen before this script ran
}
at("strength").addEventListener("input", followOptions);
at("explain").addEventListener("change", predictAgain);
at("top").addEventListener("change", predictAgain);
at("csv").addEventListener("click", download);
at("clear").addEventListener("click", clear);

// The whole window takes what is dropped, so that a near miss does not make the browser open the file.
let depth = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => carriesFiles(event) && (depth++, at("drop").classList.add("over")));
addEventListener("dragleave", (event) => carriesFiles(event) && --depth === 0 && at("drop").classList.remove("over"));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  at("drop").classList.remove("over");
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length) add(files);
  else complain("Only files can be dropped here. Save the image first, or copy it and paste it.");
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files);
  else if (!(event.target instanceof HTMLInputElement)) complain("There is no image in the clipboard.");
});

followOptions();
start();
