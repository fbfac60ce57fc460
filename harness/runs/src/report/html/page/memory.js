// Memory of every rank of each system, a bar each, against what a run may use.

function drawMemory(body, width) {
  const entries = chosenRows().filter((entry) => entry.row.memory.length || entry.row.peak);
  if (!entries.length) return body.replaceChildren(nothing("memory"));
  const columns = width > 900 && entries.length > 3 ? 2 : 1;
  const panel = (width - (columns - 1) * 24) / columns;
  const panels = element("div", { class: "panels" }, ...entries.map((entry) => memoryOf(entry, panel)));
  panels.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  body.replaceChildren(panels);
}

function memoryOf(entry, width) {
  const { row, case: one } = entry;
  const most = row.memory.length ? largest(row.memory) : row.peak;
  const share = one.limit ? `, ${percent(most / one.limit)} of ${gigabytes(one.limit)}` : "";
  const failed = row.status === "ok" ? "" : ` (${row.status})`;
  const heading = element("h3", {}, `${nameOf(entry)}: ${gigabytes(most)} on the fullest rank${share}${failed}`);
  if (!row.memory.length) return element("figure", {}, heading, element("p", { class: "note" }, "The other ranks' memory was not recorded."));
  // A limit far above is told in the heading: bars would be flat below it.
  const near = one.limit && most > one.limit / 5;
  const top = Math.max(most, near ? one.limit : 0) * 1.05;
  const [left, height] = [48, 90];
  const step = (width - left - 4) / row.memory.length;
  const y = (bytes) => height - (height * bytes) / top;
  const marks = row.memory.map((bytes, rank) => {
    const shape = rect(left + rank * step, y(bytes), Math.max(step - (step > 4 ? 1 : 0), 0.5), height - y(bytes), { fill: fillOf(entry.system), class: "bar" });
    return pointable(shape, () => [`rank ${rank}`, gigabytes(bytes) + (one.limit ? `, ${percent(bytes / one.limit)} of the limit` : "")]);
  });
  const axis = ticks(top, 3).map((bytes) => text(left - 6, Math.max(y(bytes) + 4, 10), gigabytes(bytes).replace(".0", ""), { "text-anchor": "end", class: "tick" }));
  const limit = near ? [line(left, y(one.limit), width - 4, y(one.limit), { class: "limit" })] : [];
  const made = drawing(width, height + 20, `memory of ${nameOf(entry)}`, ...marks, ...axis, ...limit, text(left, height + 15, `ranks 0 to ${row.memory.length - 1}`, { class: "axis" }));
  return element("figure", {}, heading, roving(made));
}

view("memory", DATA.runs.some((run) => run.rows.some((row) => row.peak)), drawMemory);
