// Tables that sort by a click on a heading; the one of all numbers follows the chosen reference and filters.

for (const table of document.querySelectorAll("table.numbers, table.answers")) sortable(table);

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const sort = button(head.textContent, () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...sorted([...table.tBodies[0].rows], column, down));
    });
    head.replaceChildren(sort);
  });
}

/** Rows by their numbers in a column, or by its words where it has none; those without last, up or down. */
function sorted(rows, column, down) {
  const numeric = rows.some((row) => row.cells[column].dataset.value !== undefined);
  const value = ({ cells }) => (numeric ? cells[column].dataset.value : cells[column].textContent) || "";
  return rows.sort((a, b) => {
    const [x, y] = [a, b].map(value);
    if (!x || !y) return Number(!x) - Number(!y);
    return (numeric ? x - y : x.localeCompare(y, "en", { numeric: true })) * (down ? -1 : 1);
  });
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
