// The code of each block in the three styles, line by line as `vggkit code` writes it.
"use strict";

/** Lines of PyTorch for a block (1 to 5) or the head (6). */
function writeCode(networks, settings, rows, block, style) {
  if (block === 0) return ["images = torch.randn(1, " + rows[0].shape.join(", ") + ")"];
  if (block === 6) return style === "explicit" ? writeExplicitHead(settings, rows) : writeHead(settings, rows);
  const layers = rows.filter((row) => row.block === block);
  const before = rows[rows.indexOf(layers[0]) - 1].shape;
  const pooled = layers[layers.length - 1].shape;
  const title = `# Block ${block}: ${before[0]} -> ${pooled[0]} channels, ${before[1]}x${before[2]} pooled to ` +
    `${pooled[1]}x${pooled[2]}`;
  const write = { sequential: writeSequential, blocks: writeBlocks, explicit: writeExplicit }[style];
  return [title, ...write(networks[settings.model], layers, before[0], block)];
}

const kernelOf = (network, name) => network.trunk.find((layer) => layer[0] === name)[2];

function writeConvolution(network, layer, channels) {
  const kernel = kernelOf(network, layer.name);
  return `nn.Conv2d(${channels}, ${layer.shape[0]}, kernel_size=${kernel}${kernel > 1 ? ", padding=1" : ""})`;
}

const LRN = "nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)";

function writeSequential(network, layers, channels) {
  const lines = [];
  layers.forEach((layer, index) => {
    if (layer.kind === "conv") {
      lines.push(writeConvolution(network, layer, channels) + ",");
      channels = layer.shape[0];
      if (layers[index + 1].kind !== "bn") lines.push("nn.ReLU(inplace=True),");
    } else if (layer.kind === "bn") {
      lines.push(`nn.BatchNorm2d(${channels}),`, "nn.ReLU(inplace=True),");
    } else if (layer.kind === "lrn") {
      lines.push(LRN + ",");
    } else {
      lines.push("nn.MaxPool2d(kernel_size=2, stride=2),");
    }
  });
  return lines;
}

function writeBlocks(network, layers, channels) {
  const convolutions = layers.filter((layer) => layer.kind === "conv");
  const mixed = network.trunk.some((layer) => layer[1] === "conv" && layer[2] === 1);
  const widths = convolutions.map((layer) => mixed
    ? `(${layer.shape[0]}, ${kernelOf(network, layer.name)})`
    : layer.shape[0]);
  const lrn = layers.some((layer) => layer.kind === "lrn") ? ", lrn=True" : "";
  return [`conv_block(${channels}, ${widths.join(", ")}${lrn}),`, "nn.MaxPool2d(kernel_size=2, stride=2),"];
}

function writeExplicit(network, layers, channels, block) {
  const made = [], used = [`# Block ${block}, in forward:`];
  let input = block === 1 ? "images" : "x";
  layers.forEach((layer, index) => {
    if (layer.kind === "conv") {
      made.push(`self.${layer.name} = ${writeConvolution(network, layer, channels)}`);
      channels = layer.shape[0];
      let call = `self.${layer.name}(${input})`;
      if (layers[index + 1].kind === "bn") {
        made.push(`self.${layers[index + 1].name} = nn.BatchNorm2d(${channels})`);
        call = `self.${layers[index + 1].name}(${call})`;
      }
      used.push(`x = F.relu(${call})`);
      input = "x";
    } else if (layer.kind === "lrn") {
      used.push("x = F.local_response_norm(x, size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)");
    } else if (layer.kind === "pool") {
      used.push("x = F.max_pool2d(x, kernel_size=2)");
    }
  });
  return [...made, "", ...used];
}

function writeHead(settings, rows) {
  const last = rows.filter((row) => row.block === 5).pop();
  if (settings.head === "pool") {
    return ["self.classifier = nn.Sequential(", `    nn.Linear(${last.shape[0]}, num_classes),`, ")", "",
      "# in forward:", "statistics = maps.mean((2, 3))", "logits: Tensor = self.classifier(statistics)"];
  }
  const lines = ["self.classifier = nn.Sequential(", `    nn.Linear(${last.shape[0]} * 7 * 7, 4096),`,
    "    nn.ReLU(inplace=True),", "    nn.Dropout(0.5),", "    nn.Linear(4096, 4096),", "    nn.ReLU(inplace=True),",
    "    nn.Dropout(0.5),", "    nn.Linear(4096, num_classes),", ")", "", "# in forward:"];
  return settings.head === "dense"
    ? [...lines, "# The head slides over the map; `vggkit code --head dense` has all of it."]
    : [...lines, "if maps.shape[-2:] != (7, 7):", "    maps = F.adaptive_avg_pool2d(maps, 7)",
      "logits: Tensor = self.classifier(torch.flatten(maps, 1))"];
}

function writeExplicitHead(settings, rows) {
  if (settings.head !== "fc") return writeHead(settings, rows);
  return ["self.fc1 = nn.Linear(512 * 7 * 7, 4096)", "self.fc2 = nn.Linear(4096, 4096)",
    "self.fc3 = nn.Linear(4096, num_classes)", "", "# in forward:", "if x.shape[-2:] != (7, 7):",
    "    x = F.adaptive_avg_pool2d(x, 7)", "x = torch.flatten(x, 1)  # (N, 25088)", "x = F.relu(self.fc1(x))",
    "x = F.dropout(x, p=0.5, training=self.training)", "x = F.relu(self.fc2(x))",
    "x = F.dropout(x, p=0.5, training=self.training)", "logits: Tensor = self.fc3(x)"];
}
