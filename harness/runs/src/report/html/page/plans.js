// The plans of a case's systems beside each other.

function drawPlans(body) {
  const entries = chosenRows().filter((entry) => entry.row.plan);
  const reference = entries.find((entry) => entry.system.name === chosen.reference);
  const dimensions = entries.length ? entries[0].row.plan.parts : [];
  // Dimensions that nobody uses say nothing; the first six are always told.
  const idle = { "virtual stages (vp)": "1", "ZeRO stage": "0", recomputation: "none", "iterations between placements": "0" };
  const used = dimensions.map(([name], index) => entries.some((entry) => entry.row.plan.parts[index][1] !== idle[name]));
  const head = element("tr", {}, element("th", { scope: "col" }, "system"));
  dimensions.forEach(([name], index) => used[index] && head.append(element("th", { scope: "col", class: "n" }, name)));
  const rows = entries.map((entry) => {
    const row = element("tr", {}, element("th", { scope: "row" }, nameOf(entry)));
    entry.row.plan.parts.forEach(([, value], index) => {
      if (!used[index]) return;
      const differs = reference && reference.row.plan.parts[index][1] !== value;
      row.append(element("td", { class: "n" }, differs ? element("b", {}, value) : value));
    });
    return row;
  });
  const table = element("table", { class: "plans" }, element("thead", {}, head), element("tbody", {}, ...rows));
  const wide = element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "plans" }, table);
  body.replaceChildren(entries.length ? wide : nothing("a plan"));
}

view("plans", DATA.runs.some((run) => run.rows.some((row) => row.plan)), drawPlans);
