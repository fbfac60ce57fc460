// Bars: every system of every case, over the chosen reference by the chosen statistic.

const BAR = 18;
const ROW = 24;

function drawCompare(body, width) {
  const cases = ALL_CASES.filter(shown);
  const all = cases.map((one) => rowsOf(one.id));
  const most = Math.max(largest(all.flat().map(ends)), 0);
  const columns = width > 900 ? 3 : width > 560 ? 2 : 1;
  const panel = (width - (columns - 1) * 24) / columns;
  const panels = cases.map((one, index) => {
    // Times differ too much between cases for one scale.
    const scaled = isSpeedup() ? most : largest(all[index].map(ends));
    const heading = element("h3", {}, one.label);
    return element("figure", { class: "panel" }, heading, roving(bars(one, all[index], panel, scaled)));
  });
  const what = STATISTICS.find(([name]) => name === chosen.statistic)[1];
  const over = isSpeedup() ? ` over ${titleOf(chosen.reference)}` : "";
  const spread = chosen.statistic === "totals" ? " Whiskers: spread." : "";
  const diamond = chosen.statistic === "medians" ? " Diamonds: published; hollow: of another plan." : "";
  const note = element("p", { class: "note" }, `${what}${over}.${spread}${diamond} *: extrapolated.`);
  const empty = element("p", { class: "note" }, "No case is like that.");
  const panelsBox = element("div", { class: "panels" }, ...panels);
  panelsBox.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  body.replaceChildren(note, cases.length ? panelsBox : empty);
}

/** How far a row's bar and whisker reach. */
function ends(entry) {
  const { value, spread } = valueOf(entry);
  return Math.max(value || 0, spread ? spread[1] : 0, isPublished(entry) ? entry.row.published : 0);
}

function bars(one, entries, width, most) {
  const left = Math.min(width * 0.4, 170);
  const right = 64;
  const x = (value) => left + ((width - left - right) * value) / (most || 1);
  let top = 0;
  const marks = entries.flatMap((entry, index) => {
    const parts = [];
    // Runs beside each other have a heading each.
    if (DATA.runs.length > 1 && (!index || entries[index - 1].run !== entry.run)) {
      parts.push(text(left, top + 16, fitting(entry.run.name, width - left), { class: "axis" }));
      top += ROW - 2;
    }
    parts.push(bar(entry, top, x, left));
    top += ROW;
    return parts;
  });
  const height = top;
  const reference = isSpeedup() ? [line(x(1), 0, x(1), height, { class: "one" })] : [];
  return drawing(width, height + 2, `${one.label}: ${chosen.statistic}`, ...marks, ...reference);
}

function bar(entry, top, x, left) {
  const { value, spread } = valueOf(entry);
  const middle = top + ROW / 2;
  const name = text(left - 6, middle + 4, fitting(entry.system.title, left - 6), { "text-anchor": "end", class: "name" });
  const parts = [rect(0, top, x(0), ROW, { class: "catch" }), name];
  if (value === undefined || value === null) {
    const why = entry.row.status === "ok" ? "no reference" : entry.row.status.toUpperCase();
    parts.push(text(left + 4, middle + 4, why, { class: "failed" }));
  } else {
    parts.push(rect(left, middle - BAR / 2, x(value) - left, BAR, { fill: fillOf(entry.system), class: "bar" }));
    let end = x(value);
    if (spread && entry.system.name !== chosen.reference) {
      parts.push(svg("path", { class: "whisker", d: whisker(x(spread[0]), x(spread[1]), middle) }));
      end = Math.max(end, x(spread[1]));
    }
    if (isPublished(entry)) {
      const kind = entry.row.published_other ? "diamond other" : "diamond";
      parts.push(svg("path", { class: kind, d: diamond(x(entry.row.published), middle) }));
    }
    const star = entry.row.extrapolated ? " *" : "";
    parts.push(text(end + 5, middle + 4, (isSpeedup() ? times(value) : seconds(value)) + star, { class: "value" }));
  }
  return pointable(svg("g", {}, ...parts), () => barLines(entry));
}

/** Whether what was published is of the numbers that are shown. */
function isPublished({ run, row }) {
  const ofBaseline = chosen.reference === run.systems[run.baseline].name;
  return chosen.statistic === "medians" && row.published && ofBaseline;
}

function whisker(low, high, middle) {
  const [a, b] = [round(low), round(high)];
  return `M${a} ${middle}H${b}M${a} ${middle - 4}V${middle + 4}M${b} ${middle - 4}V${middle + 4}`;
}

function diamond(x, y) {
  return `M${round(x - 5)} ${y}L${round(x)} ${y - 5}L${round(x + 5)} ${y}L${round(x)} ${y + 5}Z`;
}

/** What a bar says when it is pointed at. */
function barLines(entry) {
  const { row, run } = entry;
  const lines = [nameOf(entry), entry.case.ran];
  if (row.status !== "ok") return [...lines, `${row.status}: ${row.reason}`];
  const over = overReference(entry);
  if (over) {
    const spread = over[1] ? `, spread ${over[1][0].toFixed(2)} to ${over[1][1].toFixed(2)} over ${run.spread}` : "";
    lines.push(`${times(over[0])} over ${titleOf(chosen.reference)} by totals${spread}; ${times(over[2])} by medians`);
  }
  lines.push(`mean ${seconds(row.mean)}, median ${seconds(row.median)}, ${run.engine}`);
  const saved = savings(entry).filter(([, time]) => Math.abs(time) > row.mean * 0.005).slice(0, 4);
  if (saved.length) {
    const words = saved.map(([phase, time]) => `${phase} ${time > 0 ? "−" : "+"}${seconds(Math.abs(time))}`);
    lines.push(`against ${titleOf(chosen.reference)}: ${words.join(", ")}`);
  }
  if (row.plan) lines.push(`plan ${row.plan.text}`);
  if (row.peak) lines.push(`peak memory ${gigabytes(row.peak)}`);
  if (row.published) lines.push(`published ${times(row.published)} by medians${row.published_other ? ", of another plan" : ""}`);
  if (row.extrapolated) lines.push(`extrapolated: ${row.extrapolated}`);
  else if (row.error) lines.push(`model error ${row.error}`);
  return lines;
}

view("compare", true, drawCompare);
