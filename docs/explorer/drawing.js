// The drawing: each layer is a box as high as its map and as wide as its channels are many; both by square roots,
// so that 224 pixels and 7, 64 channels and 4096, fit beside each other.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function makeElement(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const isMap = (row) => row.shape.length === 3 && row.shape[1] > 1;
const boxHeight = (row) => (isMap(row) ? 14 + 9.6 * Math.sqrt(row.shape[1]) : 14 + 2 * Math.sqrt(row.shape[0]));
const boxWidth = (row) => {
  if (!isMap(row)) return 9;
  return row.kind === "pool" || row.kind === "bn" || row.kind === "lrn" ? 6 : 6 + 0.75 * Math.sqrt(row.shape[0]);
};

const GAPS = { conv: 7, input: 14, fc: 14, pool: 3, "adaptive pool": 12, statistics: 12, mean: 14, bn: 2, lrn: 2 };
const WIDTH = 800;

/** Where each layer lies: {left, width, height, depth}, stretched along the width of the drawing. */
function placeLayers(rows) {
  const natural = rows.map((row, index) => {
    const height = boxHeight(row);
    const depth = isMap(row) ? Math.min(12, 3 + height / 22) : 0;
    const gap = index && row.block !== rows[index - 1].block ? 20 : GAPS[row.kind] ?? 6;
    return { gap, width: boxWidth(row), height, depth };
  });
  const fixed = natural.reduce((sum, each) => sum + each.depth * 0.55, 0);
  const elastic = natural.reduce((sum, each) => sum + each.gap + each.width, 0);
  const stretch = Math.max(1, (WIDTH - 40 - fixed) / elastic);
  let left = 8;
  return natural.map((each) => {
    left += each.gap * stretch;
    const placed = { left, width: each.width * stretch, height: each.height, depth: each.depth };
    left += placed.width + each.depth * 0.55;
    return placed;
  });
}

/** Draw the rows into the svg; `select(index)` is called for a layer that is pointed at or chosen. */
function drawNetwork(svg, rows, selected, select) {
  svg.replaceChildren();
  const places = placeLayers(rows);
  const tallest = Math.max(...places.map((place) => place.height));
  const middle = 18 + tallest / 2;
  const blocks = [];
  rows.forEach((row, index) => {
    const { left, width, height, depth } = places[index];
    const group = makeElement(svg, "g", {
      class: `layer ${row.kind.replace(" ", "-")}${index === selected ? " selected" : ""}`,
      tabindex: 0, role: "button", "data-name": row.name,
      "aria-label": `${row.name}, ${row.shape.join(" by ")}`,
    });
    const top = middle - height / 2;
    if (depth) {
      makeElement(group, "path", { class: "top", d: `M${left} ${top}l${depth} ${-depth}h${width}l${-depth} ${depth}z` });
      makeElement(group, "path", {
        class: "side", d: `M${left + width} ${top}l${depth} ${-depth}v${height}l${-depth} ${depth}z`,
      });
    }
    makeElement(group, "rect", { class: "front", x: left, y: top, width, height, rx: depth ? 0 : 2 });
    makeElement(group, "rect", {
      class: "target", x: left - 3, y: top - depth, width: width + depth + 5, height: height + depth,
    });
    group.addEventListener("mouseenter", () => select(index, false));
    group.addEventListener("focus", () => select(index, false));
    group.addEventListener("click", () => select(index, true));
    const last = blocks[blocks.length - 1];
    if (last && last.block === row.block) last.right = left + width;
    else blocks.push({ block: row.block, left, right: left + width, row });
  });
  const base = middle + tallest / 2 + 20;
  for (const each of blocks) {
    const title = each.block === 0 ? "image" : each.block === 6 ? "head" : `block ${each.block}`;
    const place = (each.left + each.right) / 2;
    makeElement(svg, "path", { class: "brace", d: `M${each.left} ${base - 12}v4h${each.right - each.left}v-4` });
    makeElement(svg, "text", { class: "title", x: place, y: base + 5 }, title);
    const side = each.row.shape.length === 3 ? `${each.row.shape[1]}×${each.row.shape[2]}` : "";
    makeElement(svg, "text", { class: "size", x: place, y: base + 18 }, side);
  }
  const end = places[places.length - 1];
  svg.setAttribute("viewBox", `0 0 ${Math.ceil(Math.max(WIDTH, end.left + end.width + 20))} ${Math.ceil(base + 26)}`);
}

/** How much of the image a value sees: the image, and the square in its middle. */
function drawField(svg, row, height, width) {
  svg.replaceChildren();
  const scale = 92 / Math.max(height, width);
  const [tall, wide] = [height * scale, width * scale];
  const [left, top] = [50 - wide / 2, 50 - tall / 2];
  makeElement(svg, "rect", { class: "image", x: left, y: top, width: wide, height: tall });
  const inside = row.field !== null && row.field < Math.max(height, width);
  const side = inside ? Math.max(1.2, row.field * scale) : 0;
  const box = inside
    ? { x: 50 - side / 2, y: 50 - side / 2, width: side, height: side }
    : { x: left, y: top, width: wide, height: tall };
  makeElement(svg, "rect", { class: "field", ...box });
}
