// The controls, and what follows them.
"use strict";

const $ = (id) => document.getElementById(id);
const networks = JSON.parse($("networks").textContent);
const CONFIGURATIONS = [["vgg11", "A"], ["vgg11_lrn", "A-LRN"], ["vgg13", "B"], ["vgg16_c", "C"], ["vgg16", "D"], ["vgg19", "E"]];
const HEADS = [["fc", "paper's head"], ["dense", "dense head"], ["pool", "pool head"]];
const STYLES = [["sequential", "one Sequential"], ["blocks", "blocks"], ["explicit", "every layer by its name"]];
const MEASURES = [["parameters", "parameters"], ["multiplyAdds", "multiply-adds"], ["activationBytes", "memory of activations"]];
const CLASSES = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 120, 150, 200, 250, 300, 400, 500, 600, 800, 1000];
const KINDS = {
  input: "the image", conv: "convolution, then ReLU", pool: "2×2 max-pool", bn: "batch norm, then ReLU", lrn: "local response normalisation",
  fc: "fully connected", "adaptive pool": "average to 7×7", statistics: "mean of each channel", mean: "mean of the scores of all places",
};
const chosen = { configuration: "vgg11", norm: false, head: "fc", style: "sequential", measure: "parameters", layer: 1, kept: "conv1_1" };

const whole = (value) => value.toLocaleString("en-US");
function short(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  }
  return String(value);
}
const bytes = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : value >= 1e6 ? `${(value / 1e6).toFixed(1)} MB` : `${(value / 1e3).toFixed(1)} kB`);

/** What the controls say, as listLayers takes it. */
function readSettings() {
  const norm = chosen.norm && `${chosen.configuration}_bn` in networks ? "_bn" : "";
  return {
    model: chosen.configuration + norm,
    head: chosen.head,
    height: Number($("size").value),
    width: Number($("size").value),
    classes: CLASSES[Number($("classes").value)],
    channels: Number($("channels").value),
    batch: 2 ** Number($("batch").value),
  };
}

/** A row of choices of which one is on. */
function makeChoices(id, choices, name, after) {
  for (const [value, label] of choices) {
    const button = document.createElement("button");
    button.textContent = label;
    button.setAttribute("role", "radio");
    button.dataset.value = value;
    button.addEventListener("click", () => { chosen[name] = value; after(); });
    $(id).append(button);
  }
}

function markChoices(id, value) {
  for (const button of $(id).children) button.setAttribute("aria-checked", String(button.dataset.value === value));
}

function showTotals(settings, rows) {
  const totals = sumLayers(rows);
  const training = 3 * totals.weightBytes + settings.batch * totals.activationBytes;
  const facts = [
    [whole(totals.parameters), "parameters"],
    [short(totals.multiplyAdds), "multiply-adds an image"],
    [bytes(totals.weightBytes), "weights in float32"],
    [bytes(totals.activationBytes), "activations of an image"],
    [bytes(training), `to train, about, batch of ${settings.batch}`],
  ];
  $("totals").replaceChildren(...facts.map(([value, label]) => {
    const card = document.createElement("div");
    card.append(Object.assign(document.createElement("strong"), { textContent: value }), label);
    return card;
  }));
  $("totals").dataset.totals = JSON.stringify(totals);
}

function showLayer(settings, rows) {
  const row = rows[chosen.layer];
  const totals = sumLayers(rows);
  const share = (name) => `${(100 * row[name] / totals[name]).toPrecision(2)} %`;
  $("layer-name").textContent = row.name;
  const facts = [
    ["what", row.kind === "conv" && settings.model.endsWith("_bn") ? "convolution" : KINDS[row.kind]],
    ["output", row.shape.join(" × ")],
    ["parameters", row.parameters ? `${whole(row.parameters)} (${share("parameters")})` : "none"],
    ["multiply-adds", row.multiplyAdds ? `${whole(row.multiplyAdds)} (${share("multiplyAdds")})` : "none"],
    ["memory", bytes(row.activationBytes)],
  ];
  $("layer-facts").replaceChildren(...facts.flatMap(([name, text]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: text }),
  ]));
  drawField($("field"), row, settings.height, settings.width);
  $("field-text").textContent = row.field === null ? "A value depends on the whole image."
    : row.field === 1 ? "A value is a pixel of one colour."
    : `A value depends on ${row.field}×${row.field} pixels${row.field > settings.height ? ", more than the image has" : ""}.`;
  const block = row.block;
  $("code-title").textContent = block === 0 ? "the image" : block === 6 ? "the head" : `block ${block}`;
  $("code").textContent = writeCode(networks, settings, rows, block, chosen.style).join("\n");
  $("code-note").textContent = chosen.style === "blocks" && block > 0 && block < 6
    ? "conv_block is a function of ten lines that adds a convolution and a ReLU for each width: see `vggkit code --style blocks`."
    : chosen.style !== "sequential" && chosen.head !== "fc" ? "This head is written in the first style only." : "";
  for (const layer of $("network").querySelectorAll(".layer")) layer.classList.toggle("selected", layer.dataset.name === row.name);
  for (const bar of $("bars").children) bar.classList.toggle("selected", bar.dataset.name === row.name);
}

function showBars(rows) {
  const total = sumLayers(rows)[chosen.measure] || 1;
  const format = chosen.measure === "activationBytes" ? bytes : short;
  const most = Math.max(...rows.map((row) => row[chosen.measure]));
  $("bars").replaceChildren(...rows.map((row, index) => {
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.dataset.name = row.name;
    const fill = document.createElement("i");
    fill.style.width = `${100 * row[chosen.measure] / most}%`;
    fill.className = row.kind.replace(" ", "-");
    const track = document.createElement("span");
    track.append(fill);
    bar.append(
      Object.assign(document.createElement("b"), { textContent: row.name }),
      Object.assign(document.createElement("span"), { className: "shape", textContent: row.shape.join("×") }),
      track,
      Object.assign(document.createElement("em"), {
        textContent: row[chosen.measure] ? `${format(row[chosen.measure])} · ${(100 * row[chosen.measure] / total).toFixed(1)} %` : "",
      }),
    );
    bar.addEventListener("click", () => select(index, true));
    return bar;
  }));
}

let shown = { settings: null, rows: [] };

function select(index, kept) {
  chosen.layer = index;
  if (kept) chosen.kept = shown.rows[index].name;
  showLayer(shown.settings, shown.rows);
}

function update() {
  const settings = readSettings();
  const rows = listLayers(networks, settings);
  shown = { settings, rows };
  const place = rows.findIndex((row) => row.name === chosen.kept);
  chosen.layer = place < 0 ? Math.min(1, rows.length - 1) : place;
  markChoices("configurations", chosen.configuration);
  markChoices("heads", chosen.head);
  markChoices("styles", chosen.style);
  markChoices("measures", chosen.measure);
  $("norm").disabled = !(`${chosen.configuration}_bn` in networks);
  $("size-shown").textContent = `${settings.height}×${settings.width}`;
  $("classes-shown").textContent = whole(settings.classes);
  $("channels-shown").textContent = settings.channels;
  $("batch-shown").textContent = settings.batch;
  drawNetwork($("network"), rows, chosen.layer, select);
  showTotals(settings, rows);
  showBars(rows);
  showLayer(settings, rows);
}

makeChoices("configurations", CONFIGURATIONS, "configuration", update);
makeChoices("heads", HEADS, "head", update);
makeChoices("styles", STYLES, "style", update);
makeChoices("measures", MEASURES, "measure", update);
$("norm").addEventListener("change", () => { chosen.norm = $("norm").checked; update(); });
for (const id of ["size", "classes", "channels", "batch"]) $(id).addEventListener("input", update);
update();
