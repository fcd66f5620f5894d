// A small VGG in plain JavaScript: 3×3 convolutions with ReLU, 2×2 max-pools, the mean of each channel and one matrix.
// Its weights are bytes with a scale for each output channel, as build.py wrote them.
"use strict";

/** The layers with their weights as floats, from the JSON of build.py. */
function readNetwork(stored) {
  const decode = (text) => Int8Array.from(atob(text), (letter) => letter.charCodeAt(0) << 24 >> 24);
  return {
    ...stored,
    layers: stored.layers.map((layer) => {
      if (layer.kind === "pool") return layer;
      const codes = decode(layer.codes);
      const each = codes.length / layer.out;
      return { ...layer, weights: Float32Array.from(codes, (code, index) => code * layer.scales[Math.floor(index / each)]) };
    }),
  };
}

/** A 3×3 convolution with padding 1 and a ReLU on maps {channels, height, width, values}. */
function convolve(maps, layer) {
  const { height, width, channels, values: source } = maps;
  const values = new Float32Array(layer.out * height * width);
  for (let out = 0; out < layer.out; out++) {
    const start = out * height * width;
    values.fill(layer.bias[out], start, start + height * width);
    for (let input = 0; input < channels; input++) {
      const begin = input * height * width;
      for (let down = -1; down <= 1; down++) {
        for (let right = -1; right <= 1; right++) {
          const weight = layer.weights[((out * channels + input) * 3 + down + 1) * 3 + right + 1];
          if (weight === 0) continue;
          const [first, last] = [Math.max(0, -right), Math.min(width, width - right)];
          for (let y = Math.max(0, -down); y < Math.min(height, height - down); y++) {
            const [to, from] = [start + y * width, begin + (y + down) * width + right];
            for (let x = first; x < last; x++) values[to + x] += weight * source[from + x];
          }
        }
      }
    }
    for (let place = start; place < start + height * width; place++) if (values[place] < 0) values[place] = 0;
  }
  return { channels: layer.out, height, width, values };
}

/** A 2×2 max-pool. */
function pool(maps) {
  const [height, width] = [maps.height >> 1, maps.width >> 1];
  const values = new Float32Array(maps.channels * height * width);
  for (let channel = 0; channel < maps.channels; channel++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const from = (channel * maps.height + 2 * y) * maps.width + 2 * x;
        values[(channel * height + y) * width + x] = Math.max(
          maps.values[from], maps.values[from + 1], maps.values[from + maps.width], maps.values[from + maps.width + 1]);
      }
    }
  }
  return { channels: maps.channels, height, width, values };
}

/** Every layer's maps by name, and the probabilities, for grey pixels in [0, 1], row by row. */
function runNetwork(network, grey, height, width) {
  const { mean, std } = network;
  let maps = { channels: 1, height, width, values: Float32Array.from(grey, (value) => (value - mean) / std) };
  const found = [];
  let logits = null;
  for (const layer of network.layers) {
    if (layer.kind === "fc") {
      const places = maps.height * maps.width;
      const means = Array.from({ length: maps.channels }, (_, channel) =>
        maps.values.subarray(channel * places, (channel + 1) * places).reduce((sum, value) => sum + value, 0) / places);
      logits = Array.from(layer.bias, (bias, out) =>
        means.reduce((sum, value, index) => sum + value * layer.weights[out * maps.channels + index], bias));
      break;
    }
    maps = layer.kind === "pool" ? pool(maps) : convolve(maps, layer);
    found.push({ name: layer.name, ...maps });
  }
  const largest = Math.max(...logits);
  const powers = logits.map((value) => Math.exp((value - largest) / network.temperature));
  const sum = powers.reduce((total, value) => total + value, 0);
  return { maps: found, probabilities: powers.map((value) => value / sum) };
}
