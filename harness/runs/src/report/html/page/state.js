// The data, what is chosen, and who is told when the choice changes.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** What is chosen. `case`: index into ALL_CASES. */
const chosen = { reference: "", statistic: "totals", model: "", cluster: "", gate: "", case: 0, stage: "" };

/** Every case of every run, once. */
const ALL_CASES = [];
for (const run of DATA.runs) {
  for (const one of run.cases) {
    if (!ALL_CASES.some((other) => other.id === one.id)) ALL_CASES.push(one);
  }
}

/** Every system of every run, once. */
const ALL_SYSTEMS = [];
for (const run of DATA.runs) {
  for (const system of run.systems) {
    if (!ALL_SYSTEMS.some((other) => other.name === system.name)) ALL_SYSTEMS.push(system);
  }
}
chosen.reference = DATA.runs[0].systems[DATA.runs[0].baseline].name;

const STATISTICS = [
  ["totals", "speedup by totals"],
  ["medians", "speedup by medians"],
  ["mean", "mean time of an iteration"],
  ["median", "median time of an iteration"],
];

const views = [];
let planned = false;

/** Draws views again after a change. */
function changed() {
  hideTip();
  if (planned) return;
  planned = true;
  setTimeout(() => {
    planned = false;
    views.forEach((draw) => draw());
  });
}

/** Registers what draws one section; `has`: whether there is something to draw in any run. */
function view(name, has, draw) {
  const section = document.getElementById(name);
  if (!has) return;
  section.hidden = false;
  const body = section.querySelector(".view");
  views.push(() => keepingFocus(body, () => draw(body, Math.max(body.clientWidth, 280))));
}

/** Draws again without taking the focus from a control inside. */
function keepingFocus(body, draw) {
  const controls = () => [...body.querySelectorAll("select, button")];
  const at = controls().indexOf(document.activeElement);
  draw();
  const again = controls()[at];
  if (again) again.focus({ preventScroll: true });
}

function isSpeedup() {
  return chosen.statistic === "totals" || chosen.statistic === "medians";
}

function shown(one) {
  return ["model", "cluster", "gate"].every((key) => !chosen[key] || one[key] === chosen[key]);
}

/** Rows of a case: `[{run, row, system, case}]` over all runs. */
function rowsOf(id) {
  const all = [];
  for (const run of DATA.runs) {
    for (const row of run.rows) {
      if (run.cases[row.case].id === id) all.push({ run, row, system: run.systems[row.system], case: run.cases[row.case] });
    }
  }
  return all;
}

function chosenRows() {
  return rowsOf(ALL_CASES[chosen.case].id);
}

/** The row of the reference system beside a row, if there is one. */
function referenceOf({ run, row }) {
  const index = run.systems.findIndex((system) => system.name === chosen.reference);
  return run.rows.find((other) => other.case === row.case && other.system === index);
}

/** Speedup over the reference, its spread and that by medians; none where either did not end. */
function overReference({ run, row }) {
  const index = run.systems.findIndex((system) => system.name === chosen.reference);
  return row.over[index];
}

/** The chosen number of a row, and its spread. */
function valueOf(entry) {
  const over = overReference(entry);
  switch (chosen.statistic) {
    case "totals":
      return { value: over && over[0], spread: over && over[1] };
    case "medians":
      return { value: over && over[2] };
    default:
      return { value: entry.row[chosen.statistic] };
  }
}

function titleOf(name) {
  const system = ALL_SYSTEMS.find((other) => other.name === name);
  return system ? system.title : name;
}

/** A system's title, and its run where there are several. */
function nameOf({ run, system }) {
  return DATA.runs.length > 1 ? `${system.title}, ${run.name}` : system.title;
}

/** Mean over stages, or that of one stage, `[phase]`. */
function phasesOf(row, stage = "") {
  if (!row.phases.length) return undefined;
  if (stage !== "") return row.phases[stage];
  return DATA.phases.map((_, phase) => mean(row.phases.map((of) => of[phase])));
}

/** What a system saves of the reference's time, most first: `[words, seconds]`, below 0 where it loses. */
function savings(entry) {
  const reference = referenceOf(entry);
  const own = phasesOf(entry.row);
  const theirs = reference && phasesOf(reference);
  if (!own || !theirs) return [];
  const all = DATA.phases.map((phase, index) => [phase.words, theirs[index] - own[index]]);
  return all.filter(([, saved]) => saved !== 0).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
}

/** The fill of a system: its colour, or its hatch over it. */
function fillOf(system) {
  return system.hatch === "none" ? system.color : `url(#hatch-${ALL_SYSTEMS.findIndex((other) => other.name === system.name)})`;
}

/** Patterns of all systems that have a hatch, for drawings to refer to. */
function hatches() {
  const lines = { rising: ["M0 6L6 0"], falling: ["M0 0L6 6"], crossed: ["M0 6L6 0", "M0 0L6 6"], level: ["M0 3L6 3"], upright: ["M3 0L3 6"], grid: ["M0 3L6 3", "M3 0L3 6"], dotted: ["M2 3L4 3"] };
  const pattern = (system, index) => {
    const strokes = (lines[system.hatch] || []).map((d) => svg("path", { d, class: "hatch" }));
    const size = { id: `hatch-${index}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" };
    return svg("pattern", size, rect(0, 0, 6, 6, { fill: system.color }), ...strokes);
  };
  return svg("svg", { class: "defs", "aria-hidden": "true" }, svg("defs", {}, ...ALL_SYSTEMS.map(pattern)));
}
