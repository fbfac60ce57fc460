// What some ranks do when in the last iteration: streams of spans that zoom.

const STREAMS = ["compute", "communication", "copies"];
const zoom = { key: "", from: 0, to: 1 };
let timelineOf = 0;

/** Timelines of the case: of each system, by each engine that says what its ranks do. */
function timelines() {
  return chosenRows().flatMap((entry) => {
    const name = (timeline) => (entry.row.timelines.length > 1 ? `${nameOf(entry)}, ${timeline.engine}` : nameOf(entry));
    return entry.row.timelines.map((timeline) => ({ name: name(timeline), timeline }));
  });
}

/** Spans with their starts and ends in seconds, and the lane that each is in. */
function unpacked(timeline) {
  const lanes = [];
  const spans = [];
  for (const { rank, spans: packed } of timeline.ranks) {
    const used = [...new Set(packed.map((span) => span[3]))].sort();
    const first = lanes.length;
    lanes.push(...used.map((stream) => `${rank} ${STREAMS[stream]}`));
    let start = 0;
    for (const [activity, since, length, stream, block, work] of packed) {
      start += since;
      const lane = first + used.indexOf(stream);
      spans.push({ activity, start: start / 1e6, end: (start + length) / 1e6, lane, block, work, rank });
    }
  }
  return { lanes, spans, end: Math.max(largest(spans.map((span) => span.end)), 1e-9) };
}

function drawTimeline(body, width) {
  const all = timelines();
  if (!all.length) return body.replaceChildren(nothing("what ranks do when"));
  timelineOf = Math.min(timelineOf, all.length - 1);
  const { name, timeline } = all[timelineOf];
  const key = `${chosen.case} ${timelineOf}`;
  if (zoom.key !== key) Object.assign(zoom, { key, from: 0, to: 1 });
  const select = choice("System", all.map((one, index) => [index, one.name]), timelineOf, (value) => {
    timelineOf = Number(value);
    changed();
  });
  const unpackedSpans = unpacked(timeline);
  const holder = element("div", {});
  const redraw = () => holder.replaceChildren(spansIn(timeline, unpackedSpans, width, redraw, name));
  const keep = (change) => () => {
    change();
    redraw();
  };
  const buttons = [
    button("+", keep(() => zoomBy(0.5)), "zoom in"),
    button("−", keep(() => zoomBy(2)), "zoom out"),
    button("◀", keep(() => panBy(-0.5)), "earlier"),
    button("▶", keep(() => panBy(0.5)), "later"),
    button("all", keep(() => Object.assign(zoom, { from: 0, to: 1 })), "the whole iteration"),
  ];
  redraw();
  const used = new Set(timeline.activities.map(([, phase]) => phase));
  const legend = phaseLegend(DATA.phases.filter((phase) => used.has(phase.name)));
  const cut = timeline.cut ? [element("p", { class: "note" }, "Only the beginning of the iteration is kept: it has too many spans.")] : [];
  body.replaceChildren(element("div", { class: "choices" }, select, ...buttons), ...cut, legend, holder);
}

function zoomBy(factor, at = 0.5) {
  const middle = zoom.from + (zoom.to - zoom.from) * at;
  const size = Math.min(Math.max((zoom.to - zoom.from) * factor, 1e-5), 1);
  const from = Math.min(Math.max(middle - size * at, 0), 1 - size);
  Object.assign(zoom, { from, to: from + size });
}

function panBy(part) {
  const size = zoom.to - zoom.from;
  const from = Math.min(Math.max(zoom.from + size * part, 0), 1 - size);
  Object.assign(zoom, { from, to: from + size });
}

function spansIn(timeline, { lanes, spans, end }, width, redraw, name) {
  const [left, lane] = [Math.min(width * 0.28, 118), 20];
  const [from, to] = [zoom.from * end, zoom.to * end];
  const x = (time) => left + ((width - left - 6) * (time - from)) / (to - from);
  const height = lanes.length * lane;
  const shapes = lanes.map((words, index) => text(left - 6, index * lane + 14, fitting(words, left - 6), { "text-anchor": "end", class: "tick" }));
  for (const span of spans) {
    const [a, b] = [Math.max(x(span.start), left), Math.min(x(span.end), width - 6)];
    if (b <= left || a >= width - 6) continue;
    shapes.push(spanMark(timeline, span, a, b, lane, left));
  }
  const count = width > 600 ? 6 : 3;
  for (let index = 0; index <= count; index += 1) {
    const time = from + ((to - from) * index) / count;
    const anchor = index === 0 ? "start" : index === count ? "end" : "middle";
    shapes.push(text(x(time), height + 16, seconds(time), { "text-anchor": anchor, class: "tick" }));
  }
  const made = drawing(width, height + 22, `timeline of ${name}; keys: + - 0 and arrows`, ...shapes);
  made.setAttribute("tabindex", "0");
  made.classList.add("timeline");
  gestures(made, redraw, left, width);
  return made;
}

function spanMark(timeline, span, a, b, lane) {
  const [activity, phase] = timeline.activities[span.activity];
  const shape = rect(a, span.lane * lane + 2, Math.max(b - a, 0.4), lane - 4, { class: `phase-${phase} span` });
  const pass = span.work ? `${span.work % 2 ? "forward" : "backward"} of micro-batch ${Math.floor((span.work - 1) / 2)}` : "";
  const block = span.block ? `block ${span.block - 1}` : "";
  const lines = () => [`rank ${span.rank}: ${activity}`, [block, pass].filter(Boolean).join(", "), `${seconds(span.start)} + ${seconds(span.end - span.start)}`].filter(Boolean);
  shape.addEventListener("pointerenter", () => showTip(lines(), shape));
  shape.addEventListener("pointerleave", hideTip);
  return shape;
}

/** Keys, wheel with Ctrl, and dragging. */
function gestures(made, redraw, left, width) {
  const act = (change) => {
    hideTip();
    change();
    redraw();
    const again = document.querySelector("#timeline .timeline");
    if (again) again.focus({ preventScroll: true });
  };
  made.addEventListener("keydown", (event) => {
    const keys = { "+": () => zoomBy(0.5), "=": () => zoomBy(0.5), "-": () => zoomBy(2), ArrowLeft: () => panBy(-0.25), ArrowRight: () => panBy(0.25), 0: () => zoomBy(1e9) };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act(keys[event.key]);
  });
  made.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const box = made.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width - left;
    const turned = event.deltaY || event.deltaX;
    act(() => zoomBy(turned > 0 ? 1.25 : 0.8, Math.min(Math.max(at / (width - left), 0), 1)));
  }, { passive: false });
  made.addEventListener("pointerdown", (event) => {
    const start = event.clientX;
    const drag = new AbortController();
    const drop = (last) => {
      drag.abort();
      const moved = ((last.clientX - start) / made.getBoundingClientRect().width) * (width / (width - left));
      if (Math.abs(last.clientX - start) > 3) act(() => panBy(-moved));
    };
    window.addEventListener("pointerup", drop, { signal: drag.signal });
    // The page scrolls instead: nothing was dragged.
    window.addEventListener("pointercancel", () => drag.abort(), { signal: drag.signal });
  });
}

view("timeline", DATA.runs.some((run) => run.rows.some((row) => row.timelines.length)), drawTimeline);
