// What ranks send each other, as a matrix, for one system at a time.

let trafficOf = 0;

function drawTraffic(body, width) {
  const entries = chosenRows().filter((entry) => entry.row.traffic);
  if (!entries.length) return body.replaceChildren(nothing("traffic"));
  trafficOf = Math.min(trafficOf, entries.length - 1);
  const select = choice("System", entries.map((entry, index) => [index, nameOf(entry)]), trafficOf, (value) => {
    trafficOf = Number(value);
    changed();
  });
  const most = largest(entries.flatMap((entry) => entry.row.traffic.megabytes.flat()));
  const entry = entries[trafficOf];
  const { ranks_per_cell: size, megabytes: values } = entry.row.traffic;
  const name = (cell) => (size === 1 ? `rank ${cell}` : `ranks ${cell * size} to ${Math.min((cell + 1) * size, entry.case.gpus) - 1}`);
  const side = Math.min(width, 620);
  const made = grid({
    label: `traffic of ${nameOf(entry)}`,
    values,
    range: [0, most || 1],
    width: side,
    cellHeight: (side - 48) / values.length,
    lines: (from, to) => [`${name(from)} to ${name(to)}`, megabytes(values[from][to])],
    rowLabel: (cell) => cell * size,
    columnLabel: (cell) => cell * size,
    rowTitle: "from rank",
    columnTitle: cellsOfNode(entry) ? "to rank; lines: nodes" : "to rank",
    every: cellsOfNode(entry),
  });
  made.classList.add("square");
  const summary = element("ul", { class: "differences" }, ...entries.map(trafficLine));
  body.replaceChildren(element("div", { class: "choices" }, select), summary, made, scale("0", megabytes(most)));
}

/** How many rows and columns a node has; nothing where some stand for ranks of several nodes. */
function cellsOfNode({ row, case: one }) {
  const cells = one.node / row.traffic.ranks_per_cell;
  return Number.isInteger(cells) && cells > 0 ? cells : undefined;
}

/** How much in all, how much between nodes where that is known, and how uneven. */
function trafficLine(entry) {
  const { megabytes: values } = entry.row.traffic;
  const cells = cellsOfNode(entry);
  const total = sum(values.flat());
  const node = (cell) => Math.floor(cell / cells);
  const far = sum(values.flatMap((row, from) => row.filter((_, to) => node(from) !== node(to))));
  const received = values[0].map((_, to) => sum(values.map((row) => row[to])));
  const uneven = total > 0 ? `, busiest receiver ${digits(largest(received) / mean(received))} times the mean` : "";
  const between = cells ? `, ${percent(far / (total || 1))} between nodes` : "";
  return element("li", {}, element("b", {}, nameOf(entry)), ` ${megabytes(total)}${between}${uneven}`);
}

view("traffic", DATA.runs.some((run) => run.rows.some((row) => row.traffic)), drawTraffic);
