
// Figures as they were made, in the colours of the page.

// Inks that vanish on a dark page, and what stands for them there.
const INKS = [
  [["#202020", "#000000", "#000", "black", "rgb(0,0,0)", "#2a3f5f", "#444"], "#e6e6e6"],
  [["#404040", "#505050", "#606060", "#707070", "#808080", "#909090"], "#a3a7ad"],
  [["#e6e6e6", "#d9d9d9", "#ebf0f8", "#dfe8f3", "#c8d4e3", "#eee"], "#3a3e44"],
  [["white", "#ffffff", "#fff"], "#16181b"],
];
const ON_DARK = Object.fromEntries(INKS.flatMap(([inks, ink]) => inks.map((each) => [each, ink])));

let printing = false;
const isDark = () => dark.matches && !printing;

function inkOf(colour) {
  const plain = colour.toLowerCase().replace(/\s/g, "");
  return ON_DARK[plain] ?? colour.replace(/rgba\(\s*0\s*,\s*0\s*,\s*0\s*,\s*(?=0?\.)/, "rgba(230,230,230,");
}

// A copy with the inks of a dark page. What lies on the cells of a heatmap stays as it is.
function darkened(value, name = "", cells = false) {
  if (typeof value === "string") return /color$/.test(name) ? inkOf(value) : value;
  if (Array.isArray(value)) return value.map((each) => darkened(each, name, cells));
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  const onCells = cells && value.xref && !String(value.xref).startsWith("paper");
  if (onCells && !String(value.xref).endsWith(" domain")) return value;
  const made = {};
  for (const [key, each] of Object.entries(value))
    made[key] = /^(colorscale|colorway)$/.test(key) ? each : darkened(each, key, cells);
  return made;
}

function dressed({ data: traces, layout }) {
  if (!isDark()) return { traces, layout: { ...layout, ...CLEAR } };
  const isCells = ({ type }) => /heatmap|contour/.test(type ?? "");
  const cells = traces.some(isCells);
  const plain = darkened(layout, "", cells);
  const font = { color: "#e6e6e6", ...plain.font };
  const hoverlabel = { bgcolor: "#1f2226", ...plain.hoverlabel };
  const inked = traces.map((trace) => (isCells(trace) ? trace : darkened(trace)));
  return { traces: inked, layout: { ...plain, font, hoverlabel, ...CLEAR } };
}

// Everything that is drawn, to be drawn again in other colours; figures wait until they are near.
const drawings = new Set();
const waiting = new Map();
const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) drawNow(target);
  },
  { rootMargin: "600px" },
);

function drawNow(place) {
  const draw = waiting.get(place);
  if (!draw) return;
  waiting.delete(place);
  near.unobserve(place);
  drawings.add(draw);
  draw();
}

// `draw` is called once `place` is near the window, and whenever colours change.
function drawWhenNear(place, draw) {
  waiting.set(place, draw);
  near.observe(place);
}

const redraw = () => drawings.forEach((draw) => draw());
dark.addEventListener("change", redraw);

const PAPER = 700; // CSS pixels across a printed page

addEventListener("beforeprint", () => {
  printing = true;
  for (const place of [...waiting.keys()]) drawNow(place);
  redraw();
  for (const plot of document.querySelectorAll(".drawing > *"))
    plot.style.zoom = Math.min(1, PAPER / plot.scrollWidth);
});
addEventListener("afterprint", () => {
  printing = false;
  for (const plot of document.querySelectorAll(".drawing > *")) plot.style.zoom = "";
  redraw();
});

function drawingOf({ name, caption, figure }) {
  const made = element("figure");
  const { width, height = 450 } = figure.layout;
  const place = element("div", "", { class: "drawing", tabindex: 0, role: "group", "aria-label": `${name}: ${caption}` });
  place.style.minHeight = `${height}px`;
  const plot = element("div");
  if (width) plot.style.width = `${width}px`;
  place.append(plot);
  made.append(place, element("figcaption", caption));
  drawWhenNear(place, () => {
    const { traces, layout } = dressed(figure);
    // plotly writes into what it is given.
    Plotly.react(plot, structuredClone(traces), structuredClone(layout), { ...MODE_BAR, responsive: !width });
    place.dataset.drawn = "";
  });
  return made;
}
