// Tables that sort by a click on a heading; the one of all numbers follows the chosen reference and filters.

for (const table of document.querySelectorAll("table.numbers, table.answers")) sortable(table);

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const sort = button(head.textContent, () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => compareCells(a.cells[column], b.cells[column]) * (down ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
    head.replaceChildren(sort);
  });
}

/** Numbers before words, and cells without either last. */
function compareCells(a, b) {
  const [x, y] = [a, b].map((cell) => (cell.dataset.value === undefined ? NaN : Number(cell.dataset.value)));
  if (!Number.isNaN(x) || !Number.isNaN(y)) return (Number.isNaN(x) ? Infinity : x) - (Number.isNaN(y) ? Infinity : y) || 0;
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

const numbers = document.querySelector("#table table");
const search = element("input", { type: "search", placeholder: "words in a row", "aria-label": "Show rows with these words" });
search.addEventListener("input", drawTable);
document.querySelector("#table h2").after(element("label", { class: "search" }, element("span", {}, "Rows with"), search));

function drawTable() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const heading = `over ${titleOf(chosen.reference)}`;
  for (const row of numbers.tBodies[0].rows) {
    const run = DATA.runs[row.dataset.run];
    const entry = { run, row: run.rows[row.dataset.row] };
    fill(row, overReference(entry));
    const all = row.textContent.toLowerCase();
    row.hidden = !shown(run.cases[entry.row.case]) || !words.every((word) => all.includes(word));
  }
  [...numbers.tHead.rows[0].cells].forEach((head, column) => {
    const cell = numbers.tBodies[0].rows[0].cells[column];
    if (cell.classList.contains("over")) head.firstChild.textContent = heading;
  });
}

/** Puts a speedup into the cells that hold one. */
function fill(row, over) {
  const set = (name, value, words) => {
    const cell = row.querySelector(`.${name}`);
    if (!cell) return;
    cell.textContent = value === undefined ? "" : words;
    if (value === undefined) delete cell.dataset.value;
    else cell.dataset.value = value;
  };
  const spread = over && over[1];
  set("over", over ? over[0] : undefined, over && times(over[0]));
  set("medians", over ? over[2] : undefined, over && times(over[2]));
  set("spread", spread ? spread[1] - spread[0] : undefined, spread && `${spread[0].toFixed(2)} to ${spread[1].toFixed(2)}`);
}

views.push(drawTable);
