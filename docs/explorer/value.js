// One value of a map, and what it was computed from: windows times kernels, the bias and the ReLU; or four values.
"use strict";

/** What the value at (y, x) of a channel of the layer at `index` is made of. */
function explainValue(network, input, maps, index, channel, y, x) {
  const layer = network.layers[index];
  const below = index === 0 ? input : maps[index - 1];
  const read = (from, row, column) => (row < 0 || column < 0 || row >= below.height || column >= below.width
    ? 0 : below.values[(from * below.height + row) * below.width + column]);
  const value = maps[index].values[(channel * maps[index].height + y) * maps[index].width + x];
  if (layer.kind === "pool") {
    return { kind: "pool", window: [0, 1, 2, 3].map((at) => read(channel, 2 * y + (at >> 1), 2 * x + (at & 1))), value };
  }
  const parts = Array.from({ length: below.channels }, (_, from) => {
    const window = Array.from({ length: 9 }, (_, at) => read(from, y + Math.floor(at / 3) - 1, x + at % 3 - 1));
    const start = (channel * below.channels + from) * 9;
    const kernel = Array.from(layer.weights.subarray(start, start + 9));
    return { from, window, kernel, sum: window.reduce((sum, each, at) => sum + each * kernel[at], 0) };
  });
  return { kind: "conv", parts, bias: layer.bias[channel], value };
}

function makeGrid(values, side, most) {
  const grid = document.createElement("div");
  grid.className = "grid";
  grid.style.gridTemplateColumns = `repeat(${side}, 2.6rem)`;
  for (const value of values) {
    const cell = document.createElement("span");
    cell.textContent = value.toFixed(2);
    const strength = Math.round(70 * Math.min(1, Math.abs(value) / most));
    cell.style.background = `color-mix(in srgb, var(${value < 0 ? "--pool" : "--conv"}) ${strength}%, transparent)`;
    grid.append(cell);
  }
  return grid;
}

/** Show it under the maps: the three inputs that count most. */
function showValue(found, title) {
  const place = $("value");
  const text = (words) => Object.assign(document.createElement("span"), { textContent: words });
  place.replaceChildren(Object.assign(document.createElement("h3"), { textContent: title }));
  const line = document.createElement("div");
  line.className = "sum";
  place.append(line);
  const largest = (values) => Math.max(1e-9, ...values.map(Math.abs));
  if (found.kind === "pool") {
    line.append(text("the largest of"), makeGrid(found.window, 2, largest(found.window)), text(`= ${found.value.toFixed(2)}`));
    return;
  }
  const order = [...found.parts].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
  const shown = order.slice(0, 3);
  for (const part of shown) {
    const term = document.createElement("div");
    term.className = "term";
    term.append(
      makeGrid(part.window, 3, largest(found.parts.flatMap((each) => each.window))), text("×"),
      makeGrid(part.kernel, 3, largest(found.parts.flatMap((each) => each.kernel))), text(`= ${part.sum.toFixed(2)}`));
    line.append(term);
  }
  const rest = order.slice(3).reduce((sum, part) => sum + part.sum, 0);
  const total = found.parts.reduce((sum, part) => sum + part.sum, found.bias);
  const others = order.length > 3 ? ` + ${rest.toFixed(2)} of ${order.length - 3} other maps` : "";
  place.append(Object.assign(document.createElement("p"), {
    textContent: `${shown.map((part) => part.sum.toFixed(2)).join(" + ")}${others} + bias ${found.bias.toFixed(2)} = ` +
      `${total.toFixed(2)}; after the ReLU ${found.value.toFixed(2)}`,
  }));
}
