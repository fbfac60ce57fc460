// Imbalance of the routing, a row per MoE layer, time to the right.

function drawRouting(body, width) {
  const one = DATA.runs.flatMap((run) => run.cases).find((of) => of.id === ALL_CASES[chosen.case].id && of.imbalance);
  if (!one) return body.replaceChildren(nothing("routing over time"));
  const { from, max_over_mean: values } = one.imbalance;
  const all = values.flat();
  const range = [1, Math.max(largest(all), 1.01)];
  const made = grid({
    label: "imbalance by layer and iteration",
    values,
    range,
    width,
    cellHeight: Math.min(Math.max(240 / values.length, 5), 22),
    lines: (layer, column) => [`MoE layer ${layer}, from iteration ${from[column]}`, `busiest expert over mean: ${digits(values[layer][column])}`],
    rowLabel: (layer) => layer,
    columnLabel: (column) => from[column],
    rowTitle: "MoE layer",
    columnTitle: "iteration",
  });
  const worst = values.map(mean).reduce((best, value, layer, list) => (value > list[best] ? layer : best), 0);
  const words = `Mean ${digits(mean(all))}, largest ${digits(range[1])}; layer ${worst} is the most uneven (${digits(mean(values[worst]))} over time).`;
  body.replaceChildren(element("p", {}, words), made, scale("1", digits(range[1])));
}

view("routing", DATA.runs.some((run) => run.cases.some((one) => one.imbalance)), drawRouting);
