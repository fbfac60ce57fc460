// A grid of coloured cells that the keyboard goes through, for heat maps and matrices.

/** From light to dark, readable by colour-blind people (after viridis). */
const SCALE = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];

/** The colour of a share of the largest value. */
function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(at), SCALE.length - 2);
  const mix = SCALE[low].map((channel, index) => Math.round(channel + (SCALE[low + 1][index] - channel) * (at - low)));
  return `rgb(${mix.join(",")})`;
}

/**
 * A grid. `values`: [row][column]; `range`: values of the first and the last colour; `lines(row, column)`: what a cell says;
 * `rowLabel`, `columnLabel`: words at the axes, or none; `every`: thicker lines after so many rows and columns.
 */
function grid({ label, values, range, width, cellHeight, lines, rowLabel, columnLabel, rowTitle, columnTitle, every }) {
  const [rows, columns] = [values.length, values[0].length];
  const [left, bottom] = [44, 34];
  const cell = { width: (width - left - 4) / columns, height: cellHeight };
  const height = rows * cell.height;
  const shapes = [];
  values.forEach((row, r) =>
    row.forEach((value, c) => {
      const fill = colour((value - range[0]) / (range[1] - range[0] || 1));
      // A little wider than its place: no seams.
      shapes.push(rect(left + c * cell.width, r * cell.height, cell.width + 0.3, cell.height + 0.3, { fill, "shape-rendering": "crispEdges" }));
    }),
  );
  const axes = [];
  const rowStep = Math.max(1, Math.ceil(13 / cell.height));
  for (let r = 0; r < rows; r += rowStep) {
    axes.push(text(left - 4, r * cell.height + Math.min(cell.height, 13) / 2 + 4, rowLabel(r), { "text-anchor": "end", class: "tick" }));
  }
  const columnStep = Math.max(1, Math.ceil(34 / cell.width));
  for (let c = 0; c < columns; c += columnStep) {
    axes.push(text(left + c * cell.width, height + 13, columnLabel(c), { class: "tick" }));
  }
  axes.push(text(left, height + 29, columnTitle, { class: "axis" }));
  axes.push(svg("text", { transform: `translate(10 ${round(height / 2)}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, rowTitle));
  for (let at = every; every && at < columns; at += every) {
    axes.push(line(left + at * cell.width, 0, left + at * cell.width, height, { class: "node" }));
    axes.push(line(left, at * cell.height, left + columns * cell.width, at * cell.height, { class: "node" }));
  }
  const cursor = rect(left, 0, cell.width, cell.height, { class: "cursor", visibility: "hidden" });
  const made = drawing(width, height + bottom, label, ...shapes, ...axes, cursor);
  withCursor(made, cursor, { rows, columns, left, cell, lines });
  return made;
}

/** Pointer and arrow keys choose a cell, which says what it is. */
function withCursor(made, cursor, { rows, columns, left, cell, lines }) {
  let [row, column] = [0, 0];
  const show = () => {
    cursor.setAttribute("x", round(left + column * cell.width));
    cursor.setAttribute("y", round(row * cell.height));
    cursor.setAttribute("visibility", "visible");
    showTip(lines(row, column), cursor);
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  made.setAttribute("tabindex", "0");
  made.addEventListener("focus", () => made.matches(":focus-visible") && show());
  made.addEventListener("blur", hide);
  made.addEventListener("pointerleave", hide);
  made.addEventListener("pointermove", (event) => {
    const box = made.getBoundingClientRect();
    const scale = made.viewBox.baseVal.width / box.width;
    const at = [((event.clientY - box.top) * scale) / cell.height, ((event.clientX - box.left) * scale - left) / cell.width];
    if (at[0] < 0 || at[0] >= rows || at[1] < 0 || at[1] >= columns) return hide();
    [row, column] = at.map(Math.floor);
    show();
  });
  made.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    row = Math.min(Math.max(row + step[0], 0), rows - 1);
    column = Math.min(Math.max(column + step[1], 0), columns - 1);
    show();
  });
}

/** What the colours mean. */
function scale(low, high) {
  const stops = SCALE.map((rgb) => `rgb(${rgb.join(",")})`).join(",");
  const bar = element("span", { class: "scale" });
  bar.style.background = `linear-gradient(to right,${stops})`;
  return element("p", { class: "legend" }, low, bar, high);
}
