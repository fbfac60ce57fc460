// Time of every iteration, a line per system, and below it where experts moved.

function drawSeries(body, width) {
  const entries = chosenRows().filter((entry) => entry.row.steps.length > 1);
  if (!entries.length) return body.replaceChildren(nothing("more than one iteration"));
  const count = largest(entries.map((entry) => entry.row.steps.length));
  // Start-ups of the warm-up may be many times as long as what follows.
  const after = entries.flatMap((entry) => entry.row.steps.slice(Math.min(entry.run.warmup, count - 1)));
  const top = largest(after) * 1.08;
  const [left, height, lane] = [56, 200, 16];
  const movers = entries.filter((entry) => entry.row.moves.length);
  const x = (iteration) => left + ((width - left - 8) * (iteration - 1)) / Math.max(count - 1, 1);
  const y = (time) => height - (height * Math.min(time, top)) / top;
  const shapes = ticks(top, 4).flatMap((time) => [
    line(left, y(time), width - 8, y(time), { class: "gridline" }),
    text(left - 6, y(time) + 4, seconds(time), { "text-anchor": "end", class: "tick" }),
  ]);
  const warm = entries[0].run.warmup;
  if (warm > 0) shapes.unshift(rect(left, 0, x(warm + 0.5) - left, height, { class: "warmup" }));
  for (const entry of entries) shapes.push(curve(entry, x, y));
  movers.forEach((entry, index) => shapes.push(...movesOf(entry, x, height + 26 + index * (lane + 4), lane, left)));
  ticks(count, width > 600 ? 10 : 5).forEach((at) => shapes.push(text(x(Math.max(at, 1)), height + 15, Math.max(at, 1), { "text-anchor": "middle", class: "tick" })));
  const tall = height + 30 + movers.length * (lane + 4);
  const made = drawing(width, tall, "time of every iteration", ...shapes);
  const lines = entries.map((entry) => {
    const key = svg("svg", { viewBox: "0 0 20 12", class: "key long", "aria-hidden": "true" }, line(0, 6, 20, 6, { stroke: entry.system.color, "stroke-width": 2.5, ...dash(entry.system) }));
    return element("span", {}, key, nameOf(entry));
  });
  const moved = movers.map(movedLine);
  const layers = movers.filter((entry) => entry.row.layers).flatMap((entry) => movesByLayer(entry, width));
  body.replaceChildren(element("p", { class: "legend" }, ...lines), roving(made), element("ul", { class: "differences" }, ...moved), ...layers);
}

/** Which layers' experts moved when: a row per MoE layer, time to the right. */
function movesByLayer(entry, width) {
  const { from, experts: values } = entry.row.layers;
  const most = largest(values.flat());
  const made = grid({
    label: `experts of ${nameOf(entry)} that moved, by layer and iteration`,
    values,
    range: [0, most],
    width,
    cellHeight: Math.min(Math.max(160 / values.length, 5), 22),
    lines: (layer, column) => [`${nameOf(entry)}, MoE layer ${layer}, from iteration ${from[column]}`, `${values[layer][column]} experts changed rank`],
    rowLabel: (layer) => layer,
    columnLabel: (column) => from[column],
    rowTitle: "MoE layer",
    columnTitle: "iteration",
  });
  return [element("p", {}, `Experts of ${nameOf(entry)} that moved, by layer:`), made, scale("0", String(most))];
}

function dash(system) {
  const kinds = { rising: "6 3", falling: "2 2", crossed: "8 2 2 2", level: "10 3", upright: "4 4", grid: "1 3", dotted: "8 3 1 3" };
  return kinds[system.hatch] ? { "stroke-dasharray": kinds[system.hatch] } : {};
}

function curve(entry, x, y) {
  const d = entry.row.steps.map((time, index) => `${index ? "L" : "M"}${round(x(index + 1))} ${round(y(time))}`).join("");
  const path = svg("path", { d, class: "curve", stroke: entry.system.color, ...dash(entry.system) });
  const warm = entry.row.steps.slice(Math.min(entry.run.warmup, entry.row.steps.length - 1));
  return pointable(path, () => [nameOf(entry), `after warm-up ${seconds(smallest(warm))} to ${seconds(largest(warm))}, mean ${seconds(mean(warm))}`]);
}

function movesOf(entry, x, top, lane, left) {
  const most = largest(entry.row.moves.map(([, count]) => count));
  const name = text(left - 6, top + lane - 3, "moved", { "text-anchor": "end", class: "tick" });
  const base = line(left, top + lane, x(entry.row.steps.length), top + lane, { class: "gridline" });
  const marks = entry.row.moves.map(([iteration, count, time]) => {
    const tall = Math.max((lane * count) / most, 2);
    const shape = rect(x(iteration) - 1, top + lane - tall, 2.5, tall, { fill: entry.system.color });
    return pointable(shape, () => [`${nameOf(entry)}, iteration ${iteration}`, `${count} experts changed rank in ${seconds(time)}`]);
  });
  return [name, base, ...marks];
}

function movedLine(entry) {
  const { moves, steps } = entry.row;
  const [count, time] = [sum(moves.map((move) => move[1])), sum(moves.map((move) => move[2]))];
  return element("li", {}, element("b", {}, nameOf(entry)), ` moved ${count} experts in ${moves.length} iterations, ${percent(time / sum(steps))} of all time`);
}

view("series", DATA.runs.some((run) => run.rows.some((row) => row.steps.length > 1)), drawSeries);
