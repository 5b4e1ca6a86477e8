// What the page can do beyond being read: sort tables, read the matrix, highlight curves, follow a sound.
// Without this script all of it is still there to see.
"use strict";

// Tables: a column's head becomes a button; cells without a number stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.getAttribute("aria-hidden")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const keyed = [...body.rows].map((row) => {
        const cell = row.cells[column];
        const isNumber = cell.dataset.value !== undefined;
        const value = isNumber ? parseFloat(cell.dataset.value) : cell.textContent.trim();
        return { row, value, missing: isNumber && Number.isNaN(value) };
      });
      keyed.sort((a, b) => {
        if (a.missing || b.missing) return a.missing - b.missing;
        const order =
          typeof a.value === "number" && typeof b.value === "number"
            ? a.value - b.value
            : String(a.value).localeCompare(String(b.value), undefined, { numeric: true });
        return down ? -order : order;
      });
      body.append(...keyed.map((entry) => entry.row));
    });
  });
}

// The confusion matrix: say in words what the cell under the pointer, or touched, holds.
for (const table of document.querySelectorAll("table.matrix")) {
  const readout = document.getElementById(table.dataset.readout);
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const read = (event) => {
    const cell = event.target.closest("td");
    if (!cell || cell.classList.contains("sum")) return;
    const row = cell.parentElement;
    const total = Number(row.cells[row.cells.length - 1].textContent);
    const count = Number(cell.textContent || 0);
    const share = total ? ` (${((100 * count) / total).toFixed(1)} %)` : "";
    const truth = row.cells[0].textContent.trim();
    readout.textContent =
      `True ${truth}, predicted ${labels[cell.cellIndex]}: ${count} of ${total} clips${share}.`;
  };
  table.addEventListener("pointerover", read);
  table.addEventListener("click", read);
}

// Precision-recall curves: each chosen class takes the next free colour and pattern.
for (const section of document.querySelectorAll("#precision-recall")) {
  const STYLES = 6;
  const chips = [...section.querySelectorAll(".chip")];
  const curveOf = (chip) => section.querySelector(`path[data-curve="${chip.dataset.curve}"]`);
  const restyle = (chip, style) => {
    const curve = curveOf(chip);
    const swatch = chip.querySelector(".swatch line");
    curve.setAttribute("class", style ? `line on s${style}` : "line thin");
    swatch.setAttribute("class", style ? `line s${style}` : "line");
    chip.setAttribute("aria-pressed", String(Boolean(style)));
    chip.dataset.style = style || "";
    if (style) curve.parentElement.append(curve);
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      if (chip.dataset.style) return restyle(chip, 0);
      const used = chips.map((other) => Number(other.dataset.style)).filter(Boolean);
      let style = 1;
      while (used.includes(style) && style < STYLES) style += 1;
      if (used.includes(style)) {
        const oldest = chips.find((other) => Number(other.dataset.style) === style);
        restyle(oldest, 0);
      }
      restyle(chip, style);
    });
    chip.addEventListener("pointerenter", () => curveOf(chip).classList.add("hover"));
    chip.addEventListener("pointerleave", () => curveOf(chip).classList.remove("hover"));
  }
  const all = section.querySelector(".all-curves");
  all.addEventListener("change", () => section.classList.toggle("few", !all.checked));
  section.querySelector(".chooser").hidden = false;
}

// Mistakes: a line follows the sound over its spectrogram, a click in the picture goes there, one plays at a time.
for (const card of document.querySelectorAll(".card")) {
  const audio = card.querySelector("audio");
  const picture = card.querySelector(".picture");
  const cursor = card.querySelector(".cursor");
  const seconds = Number(picture.dataset.duration);
  const show = () => {
    cursor.hidden = false;
    cursor.style.left = `${Math.min(100, (100 * audio.currentTime) / seconds)}%`;
    if (!audio.paused) requestAnimationFrame(show);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    show();
  });
  audio.addEventListener("seeked", show);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    audio.currentTime = (seconds * (event.clientX - box.left)) / box.width;
    audio.play();
  });
}

// Paper shows what is folded away.
const folded = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = folded();
  opened.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));
