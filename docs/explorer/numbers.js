// The table of a network's layers, by the rules of vggkit.summarize: shapes, parameters, multiply-adds, memory and
// receptive fields for one image. `networks` is exported from vggkit's configurations by build.py.
"use strict";

const FLOAT32_BYTES = 4;

/** Rows from the image to the logits: {name, kind, shape, parameters, multiplyAdds, activationBytes, field, block}. */
function listLayers(networks, settings) {
  const network = networks[settings.model];
  const head = network.heads[settings.head];
  let [height, width] = [settings.height, settings.width];
  let channels = settings.channels, field = 1, stride = 1, block = 1;
  const rows = [];
  const add = (name, kind, shape, parameters, multiplyAdds, seen, where) => rows.push({
    name, kind, shape, parameters, multiplyAdds, field: seen, block: where,
    activationBytes: FLOAT32_BYTES * shape.reduce((product, side) => product * side, 1),
  });
  add("input", "input", [channels, height, width], 0, 0, 1, 0);
  for (const [name, kind, kernel, out] of network.trunk) {
    field += (kernel - 1) * stride;
    let parameters = 0, multiplied = 0;
    if (kind === "conv") {
      multiplied = channels * out * kernel * kernel;
      parameters = multiplied + out;
    } else if (kind === "bn") {
      parameters = 2 * out;
    } else if (kind === "pool") {
      height = Math.floor(height / 2);
      width = Math.floor(width / 2);
      stride *= 2;
    }
    channels = out;
    if (kind !== "relu") {
      add(name, kind, [channels, height, width], parameters, multiplied * height * width, field, block);
    }
    if (kind === "pool") block += 1;
  }
  addHead(add, settings, head, { channels, height, width, field, stride });
  return rows;
}

function addHead(add, settings, head, trunk) {
  const { grid, hidden } = head;
  let { channels, height, width } = trunk;
  let shape = [channels, height, width], seen = null;
  if (settings.head === "pool") {
    shape = [channels];
    add("mean", "statistics", shape, 0, 0, null, 6);
  } else {
    const dense = settings.head === "dense";
    const wanted = dense ? [Math.max(height, grid), Math.max(width, grid)] : [grid, grid];
    if (height !== wanted[0] || width !== wanted[1]) {
      shape = [channels, ...wanted];
      add("avgpool", "adaptive pool", shape, 0, 0, null, 6);
    } else if (dense) {
      seen = trunk.field + (grid - 1) * trunk.stride;
    }
    if (!dense) shape = [shape[0] * shape[1] * shape[2]];
  }
  [...hidden, settings.classes].forEach((out, index) => {
    const kernel = shape.length === 3 && index === 0 ? grid : 1;
    const places = shape.slice(1).map((side) => side - kernel + 1);
    const weights = shape[0] * kernel * kernel * out;
    const positions = places.reduce((product, side) => product * side, 1);
    shape = [out, ...places];
    add(`fc${6 + index}`, "fc", shape, weights + out, weights * positions, seen, 6);
  });
  if (shape.length === 3) add("mean", "mean", [settings.classes], 0, 0, null, 6);
}

/** The sums over all rows. */
function sumLayers(rows) {
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  const parameters = sum("parameters");
  return {
    parameters,
    multiplyAdds: sum("multiplyAdds"),
    activationBytes: sum("activationBytes"),
    weightBytes: FLOAT32_BYTES * parameters,
  };
}
