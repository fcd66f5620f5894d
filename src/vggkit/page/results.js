// Cards and the CSV file: what is known of the images, as something to look at and something to keep.

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const format = (probability) =>
  probability > 0 && probability < 0.0005 ? "< 0.1 %" : percent.format(probability).replace("%", " %");

function layHeatmap(card, prediction) {
  const [photo, heat, canvas] = [".photo", ".heat", ".canvas"].map((name) => card.querySelector(name));
  if (!prediction.heatmap || !photo.naturalWidth) return;
  // The box is in pixels of the image, the photo is shown smaller and in the middle.
  const scale = photo.offsetWidth / prediction.width;
  const [left, top, right, bottom] = prediction.heatmap.box;
  heat.style.left = `${photo.offsetLeft + left * scale}px`;
  heat.style.top = `${photo.offsetTop + top * scale}px`;
  heat.style.width = `${(right - left) * scale}px`;
  heat.style.height = `${(bottom - top) * scale}px`;
  const over = (value, size) => `${Math.max(0, value) * scale}px`;
  // Of a box that reaches beyond the image only the part over the image is shown.
  const clip = [over(-top), over(right - prediction.width), over(bottom - prediction.height), over(-left)];
  heat.style.clipPath = `inset(${clip.join(" ")})`;
  canvas.dataset.laid = "true";
}

export function makeCard(file, prediction) {
  const card = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const photo = card.querySelector(".photo");
  const label = card.querySelector(".label");
  const name = prediction.name ?? file.name;
  card.querySelector(".name").textContent = name;
  if (prediction.problem) {
    label.textContent = prediction.problem;
    label.classList.add("problem");
    photo.alt = name;
  } else {
    label.textContent = prediction.unknown ? "Unknown" : prediction.predicted?.length === 0 ? "No label" : prediction.label;
    card.querySelector(".because").textContent = prediction.unknown
      ? `No class is probable enough; the nearest is ${prediction.labels[0]}.`
      : "";
    photo.alt = `${name}: ${label.textContent}, ${format(prediction.probabilities[0])}`;
    for (const [place, each] of prediction.labels.entries()) {
      const bar = document.getElementById("bar").content.firstElementChild.cloneNode(true);
      bar.querySelector(".bar-label").textContent = each;
      if (prediction.predicted) bar.classList.add(prediction.predicted.includes(each) ? "bar-predicted" : "bar-below");
      bar.querySelector(".bar-value").textContent = format(prediction.probabilities[place]);
      bar.querySelector(".bar-fill").style.width = `${100 * prediction.probabilities[place]}%`;
      card.querySelector(".bars").append(bar);
    }
  }
  if (prediction.heatmap) {
    const heat = card.querySelector(".heat");
    heat.src = prediction.heatmap.image;
    heat.alt = `What speaks for ${prediction.heatmap.label}`;
    heat.hidden = false;
  }
  const address = URL.createObjectURL(file);
  const lay = () => layHeatmap(card, prediction);
  photo.addEventListener("load", lay);
  photo.addEventListener("error", () => {
    card.querySelector(".heat").hidden = true;
    const words = document.createElement("p");
    words.className = "no-preview";
    words.textContent = prediction.problem ? "No preview" : "This browser cannot show images of this kind.";
    photo.replaceWith(words);
  });
  photo.src = address;
  const observer = new ResizeObserver(lay);
  observer.observe(card.querySelector(".canvas"));
  card.addEventListener("remove-card", () => {
    observer.disconnect();
    URL.revokeObjectURL(address);
  });
  return card;
}

export function setHeat(cards, { shown, strength }) {
  for (const heat of cards.querySelectorAll(".heat")) heat.style.opacity = shown ? strength / 100 : 0;
}

// A spreadsheet computes a cell that begins with one of these; vggkit's own tables escape them in the same way.
const escape = (text) => (/^'*[=+\-@\t\r\n]/.test(text) ? `'${text}` : text);
const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

export function writeCsv(results) {
  const count = Math.max(1, ...results.map(({ prediction }) => prediction.labels.length));
  const places = Array.from({ length: count }, (_, place) => place + 1);
  const rows = [["path", "prediction", ...places.flatMap((place) => [`label_${place}`, `probability_${place}`]), "problem"]];
  for (const { prediction } of results) {
    const predicted = prediction.problem ? "" : prediction.unknown ? "unknown" : prediction.label;
    const pairs = places.flatMap((place) => [
      escape(prediction.labels[place - 1] ?? ""),
      String(prediction.probabilities[place - 1] ?? ""),
    ]);
    rows.push([escape(prediction.name), escape(predicted), ...pairs, escape(prediction.problem ?? "")]);
  }
  // The mark in front lets Excel read letters beyond ASCII.
  return "\ufeff" + rows.map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
}
