// Controls, theme, and the first drawing.

const controls = document.getElementById("controls");
const caseControls = document.getElementById("case");

function different(key) {
  return [...new Set(ALL_CASES.map((one) => one[key]))];
}

function set(name) {
  return (value) => {
    chosen[name] = value;
    changed();
  };
}

controls.append(
  choice("Reference", ALL_SYSTEMS.map((system) => [system.name, system.title]), chosen.reference, set("reference")),
  choice("Statistic", STATISTICS, chosen.statistic, set("statistic")),
);
for (const [key, label] of [["model", "Model"], ["cluster", "Cluster"], ["gate", "Gate"]]) {
  const all = different(key);
  if (all.length > 1) controls.append(choice(label, [["", "all"], ...all.map((value) => [value, value])], "", set(key)));
}
caseControls.append(choice("Case", ALL_CASES.map((one, index) => [index, one.label]), 0, (value) => set("case")(Number(value))));
for (const form of [controls, caseControls]) {
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
}

const links = document.querySelector("nav");
links.hidden = false;
for (const link of links.querySelectorAll("a")) link.hidden = document.querySelector(link.hash).hidden;

const THEMES = ["system", "light", "dark"];
const theme = document.getElementById("theme");
theme.hidden = false;
let themeAt = 0;
function showTheme() {
  theme.textContent = `Theme: ${THEMES[themeAt]}`;
  if (themeAt) document.documentElement.dataset.theme = THEMES[themeAt];
  else delete document.documentElement.dataset.theme;
}
theme.addEventListener("click", () => {
  themeAt = (themeAt + 1) % THEMES.length;
  showTheme();
});
showTheme();

document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
document.body.prepend(hatches());
let width = document.body.clientWidth;
views.forEach((draw) => draw());
new ResizeObserver(() => {
  if (document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  changed();
}).observe(document.body);
