// Where time goes: an iteration of each system as stacked phases, over all stages or in one.

function drawPhases(body, width) {
  const entries = chosenRows().filter((entry) => entry.row.phases.length);
  const stages = Math.max(largest(entries.map((entry) => entry.row.phases.length)), 0);
  if (Number(chosen.stage) >= stages) chosen.stage = "";
  const options = [["", "all, mean"], ...Array.from({ length: stages }, (_, stage) => [stage, `stage ${stage}`])];
  const select = choice("Stage", options, chosen.stage, (value) => {
    chosen.stage = value;
    changed();
  });
  const there = entries.filter((entry) => phasesOf(entry.row, chosen.stage));
  const most = Math.max(largest(there.map((entry) => sum(phasesOf(entry.row, chosen.stage)))), 0);
  const used = DATA.phases.map((_, phase) => there.some((entry) => phasesOf(entry.row, chosen.stage)[phase] > most * 0.002));
  const parts = [phaseLegend(DATA.phases.filter((_, phase) => used[phase])), roving(stacks(there, width, most)), differences(there)];
  if (stages > 1) parts.unshift(element("div", { class: "choices" }, select));
  body.replaceChildren(...(there.length ? parts : [nothing("where time goes")]));
}

/** What the colours of phases mean. */
function phaseLegend(phases) {
  const keys = phases.map((phase) => {
    const box = rect(0, 0, 12, 12, { class: `phase-${phase.name}` });
    return element("span", {}, svg("svg", { viewBox: "0 0 12 12", class: "key", "aria-hidden": "true" }, box), phase.words);
  });
  return element("p", { class: "legend" }, ...keys);
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/** Says that something is not there. */
function nothing(what) {
  return element("p", { class: "note" }, `Of this case, ${what} was not recorded, or is too much for the page.`);
}

function stacks(entries, width, most) {
  const left = Math.min(width * 0.3, 190);
  const scaled = (time) => ((width - left - 70) * time) / (most || 1);
  const shapes = entries.flatMap((entry, index) => {
    const [top, phases] = [index * 34, phasesOf(entry.row, chosen.stage)];
    let x = left;
    const parts = phases.map((time, phase) => {
      const at = x;
      x += scaled(time);
      if (scaled(time) < 0.2) return undefined;
      const shape = rect(at, top + 4, scaled(time), 26, { class: `phase-${DATA.phases[phase].name} part` });
      return pointable(shape, () => [nameOf(entry), `${DATA.phases[phase].words}: ${seconds(time)}, ${percent(time / sum(phases))}`]);
    });
    const name = text(left - 6, top + 21, fitting(nameOf(entry), left - 6), { "text-anchor": "end", class: "name" });
    return [name, ...parts.filter(Boolean), text(x + 5, top + 21, seconds(sum(phases)), { class: "value" })];
  });
  return drawing(width, entries.length * 34 + 4, "time by phase", ...shapes);
}

/** What each system saves and loses against the reference. */
function differences(entries) {
  const items = entries.filter((entry) => entry.system.name !== chosen.reference).map((entry) => {
    const all = savings(entry).filter(([, time]) => Math.abs(time) > entry.row.mean * 0.005);
    const words = all.slice(0, 6).map(([phase, time]) => `${phase} ${time > 0 ? "−" : "+"}${seconds(Math.abs(time))}`);
    return element("li", {}, element("b", {}, nameOf(entry)), ` ${words.join(", ") || "no phase differs by more than 0.5%"}`);
  });
  if (!items.length) return element("p", {});
  const heading = element("p", {}, `Against ${titleOf(chosen.reference)}, mean over stages:`);
  return element("div", {}, heading, element("ul", { class: "differences" }, ...items));
}

view("phases", DATA.runs.some((run) => run.rows.some((row) => row.phases.length)), drawPhases);
