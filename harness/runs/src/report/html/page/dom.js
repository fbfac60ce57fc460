// Elements, numbers in words, and the note beside what is pointed at.

/** An HTML element with attributes and children; text becomes text, never markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** An SVG element, likewise. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A drawing of that size that shrinks with the page. */
function drawing(width, height, label, ...children) {
  const viewBox = `0 0 ${round(width)} ${round(height)}`;
  return svg("svg", { viewBox, class: "drawing", role: "group", "aria-label": label }, ...children);
}

function text(x, y, words, attributes = {}) {
  return svg("text", { x: round(x), y: round(y), ...attributes }, String(words));
}

function rect(x, y, width, height, attributes = {}) {
  const place = { x: round(x), y: round(y), width: round(Math.max(width, 0)), height: round(height) };
  return svg("rect", { ...place, ...attributes });
}

function line(x1, y1, x2, y2, attributes = {}) {
  return svg("line", { x1: round(x1), y1: round(y1), x2: round(x2), y2: round(y2), ...attributes });
}

function round(value) {
  return Math.round(value * 100) / 100;
}

function seconds(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1) return `${value.toFixed(2)} s`;
  if (size >= 0.1) return `${(value * 1e3).toFixed(0)} ms`;
  if (size >= 1e-3) return `${digits(value * 1e3)} ms`;
  return `${(value * 1e6).toFixed(0)} us`;
}

function gigabytes(value) {
  return value > 0 && value < 1e8 ? `${digits(value / 1e6)} MB` : `${(value / 1e9).toFixed(1)} GB`;
}

function megabytes(value) {
  return value >= 1000 ? `${(value / 1000).toFixed(1)} GB` : `${digits(value)} MB`;
}

/** Three digits. */
function digits(value) {
  return value === 0 ? "0" : String(Number(value.toPrecision(3)));
}

function percent(part) {
  return `${(part * 100).toFixed(part < 0.1 ? 1 : 0)}%`;
}

function times(ratio) {
  return `${ratio.toFixed(2)}x`;
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The largest of some values, however many; -Infinity of none. */
function largest(values) {
  return values.reduce((most, value) => Math.max(most, value), -Infinity);
}

/** The smallest, likewise; Infinity of none. */
function smallest(values) {
  return values.reduce((least, value) => Math.min(least, value), Infinity);
}

/** Round steps from 0 to `most`, about `count` of them. */
function ticks(most, count) {
  const rough = most / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const all = [];
  for (let at = 0; at <= most * 1.0001; at += step) all.push(Number(at.toPrecision(6)));
  return all;
}

/** A text that fits so many pixels of a small font. */
function fitting(words, pixels) {
  const most = Math.max(Math.floor(pixels / 7), 3);
  return words.length <= most ? words : `${words.slice(0, most - 1)}…`;
}

const tip = document.getElementById("tip");

/** Shows lines beside an element; the first is the heading. */
function showTip(lines, at) {
  tip.replaceChildren(...lines.map((words, index) => element(index ? "div" : "strong", {}, words)));
  tip.hidden = false;
  const box = at.getBoundingClientRect();
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = Math.min(Math.max(box.left + box.width / 2 - width / 2, 8), window.innerWidth - width - 8);
  const above = box.top - height - 8;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${above > 8 ? above : Math.min(box.bottom + 8, window.innerHeight - height - 8)}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** Makes an element say something when it is pointed at or has the focus. `lines`: what, asked when it is needed. */
function pointable(shape, lines) {
  const words = lines();
  shape.setAttribute("role", "img");
  shape.setAttribute("aria-label", words.join(", "));
  shape.classList.add("mark");
  const show = () => showTip(words, shape);
  shape.addEventListener("pointerenter", show);
  shape.addEventListener("focus", show);
  shape.addEventListener("pointerleave", hideTip);
  shape.addEventListener("blur", hideTip);
  return shape;
}

/** One stop of the Tab key for all marks in a container; arrows go from mark to mark. */
function roving(container) {
  const marks = [...container.querySelectorAll(".mark")];
  marks.forEach((mark, index) => mark.setAttribute("tabindex", index ? "-1" : "0"));
  container.addEventListener("keydown", (event) => {
    const at = marks.indexOf(document.activeElement);
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const to = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : at + steps[event.key];
    if (at < 0 || !marks[to]) return;
    event.preventDefault();
    marks[at].setAttribute("tabindex", "-1");
    marks[to].setAttribute("tabindex", "0");
    marks[to].focus();
  });
  return container;
}

/** A labelled choice; `options`: value and words. */
function choice(label, options, chosen, onChange) {
  const select = element("select", {});
  for (const [value, words] of options) {
    const option = element("option", { value }, words);
    option.selected = String(value) === String(chosen);
    select.append(option);
  }
  select.addEventListener("change", () => onChange(select.value));
  return element("label", {}, element("span", {}, label), select);
}

/** A button that does something. */
function button(words, onClick, label) {
  const made = element("button", { type: "button", "aria-label": label }, words);
  made.addEventListener("click", onClick);
  return made;
}
