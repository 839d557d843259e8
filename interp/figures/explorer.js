
// What is shown: a model, a cell of it, and the order of its questions.
let model = null;
let chosen = null;
let order = { column: null, descending: true };

// Facets

// Where each site's facet stands: its axes, and its row and column among the facets.
function gridOf({ data: traces, layout }) {
  const axis = (name, letter) => layout[name.replace(letter, `${letter}axis`)];
  const facets = {};
  for (const { name, xaxis = "x", yaxis = "y" } of traces) {
    const left = axis(xaxis, "x").domain[0];
    const top = axis(yaxis, "y").domain[1];
    facets[name] = { xaxis, yaxis, left, top };
  }
  const placed = Object.values(facets);
  const columns = [...new Set(placed.map(({ left }) => left))].sort((a, b) => a - b);
  const rows = [...new Set(placed.map(({ top }) => top))].sort((a, b) => b - a);
  for (const facet of placed) {
    facet.column = columns.indexOf(facet.left);
    facet.row = rows.indexOf(facet.top);
  }
  return { facets, columns: columns.length, rows: rows.length };
}

const scoreOf = ({ site, language, layer }) => model.cells[site]?.[language]?.[layer];

// The next measured cell in a direction, across facets; the same cell at the edge.
function neighbour(cell, right, down) {
  const { languages, layers } = model;
  const { facets, columns, rows } = model.grid;
  const facet = facets[cell.site];
  let x = facet.column * layers.length + layers.indexOf(cell.layer) + right;
  let y = facet.row * languages.length + languages.indexOf(cell.language) + down;
  const inside = () =>
    x >= 0 && y >= 0 && x < columns * layers.length && y < rows * languages.length;
  for (; inside(); x += right, y += down) {
    const [site] =
      Object.entries(facets).find(
        ([, { column, row }]) =>
          column === Math.floor(x / layers.length) && row === Math.floor(y / languages.length),
      ) ?? [];
    const language = languages[y % languages.length];
    const found = { site, language, layer: layers[x % layers.length] };
    if (scoreOf(found)) return found;
  }
  return cell;
}

function highest() {
  let best = null;
  for (const site of Object.keys(model.cells))
    for (const language of model.languages)
      for (const layer of model.layers) {
        const cell = { site, language, layer };
        const score = scoreOf(cell)?.score;
        if (scoreOf(cell) && (!best || (score ?? -Infinity) > best.score))
          best = { cell, score: score ?? -Infinity };
      }
  return best.cell;
}

// The figure

const MIN_FACET = 240;
const MIN_TICK = 26;

// As wide as the page has room for, at most as designed; labels only where they have room.
function fitted() {
  const { layout } = model.figure;
  const { facets, columns } = model.grid;
  const margins = layout.margin.l + layout.margin.r;
  const [start, end] = layout.xaxis.domain;
  const designed = (end - start) * (layout.width - margins);
  const least = layout.width - columns * Math.max(0, designed - MIN_FACET);
  const width = Math.min(layout.width, Math.max(least, at("figure").clientWidth));
  const tick = ((end - start) * (width - margins)) / model.layers.length;
  const step = [1, 2, 5, 10, 20].find((every) => every * tick >= MIN_TICK) ?? 50;
  const changes = { width };
  const [text, line] = dark.matches ? ["#e6e6e6", "#8a8f96"] : ["#202020", "#404040"];
  for (const { xaxis, yaxis } of Object.values(facets)) {
    const [x, y] = [xaxis.replace("x", "xaxis"), yaxis.replace("y", "yaxis")];
    changes[`${x}.tickvals`] = model.layers.filter((_, index) => index % step === 0);
    for (const name of [x, y]) changes[`${name}.linecolor`] = changes[`${name}.tickcolor`] = line;
  }
  return { ...changes, "font.color": text };
}

function outline() {
  const { xaxis, yaxis } = model.grid.facets[chosen.site];
  const x = model.layers.indexOf(chosen.layer);
  const y = model.languages.indexOf(chosen.language);
  const box = { type: "rect", xref: xaxis, yref: yaxis };
  Object.assign(box, { x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5 });
  // Seen on every colour: black with a white edge.
  return [
    { ...box, line: { color: "#ffffff", width: 5 } },
    { ...box, line: { color: "#000000", width: 2.5 } },
  ];
}

async function draw() {
  const { data: traces, layout } = model.figure;
  at("figure").parentElement.style.setProperty("--figure", `${layout.width}px`);
  await Plotly.react("plot", traces, { ...structuredClone(layout), ...CLEAR, dragmode: false }, MODE_BAR);
  await Plotly.relayout("plot", { ...fitted(), shapes: outline() });
}

// The questions

const share = (unlearned, restored) =>
  known(unlearned) && known(restored) && unlearned !== 0
    ? data.corrupt
      ? restored / unlearned
      : 1 - restored / unlearned
    : null;

// The chosen cell's questions, with the numbers that the columns show.
function questions() {
  const { site, language, layer } = chosen;
  const restored = model.restored[site][layer];
  return data.questions.flatMap((question, index) => {
    if (question.language !== language || !known(model.tokens[index])) return [];
    const unlearned = model.unlearned[index];
    return {
      ...question,
      numbers: [unlearned, restored[index], share(unlearned, restored[index]), model.tokens[index]],
      reason: model.reasons[index],
      answers: {
        V: model.answers.vanilla[index] ?? question.vanilla,
        U: model.answers.unlearned[index],
        R: model.answers.restored[site]?.[layer]?.[index],
      },
    };
  });
}

const COLUMNS = [
  ["loss(V, U)", precise],
  ["loss(V, R)", precise],
  [data.corrupt ? "R / U" : "1 − R / U", fixed],
  ["tokens", (value) => (known(value) ? String(value) : "–")],
];

function sorted(items) {
  const { column, descending } = order;
  if (column === null) return items;
  const [there, missing] = [[], []];
  for (const item of items) (known(item.numbers[column]) ? there : missing).push(item);
  const sign = descending ? -1 : 1;
  there.sort((a, b) => sign * (a.numbers[column] - b.numbers[column]));
  return [...there, ...missing];
}

function numbersOf(values) {
  return COLUMNS.map(([name, format], index) => {
    const cell = element("td", "", { class: "number" });
    cell.append(element("span", name, { class: "label" }), format(values[index]));
    return cell;
  });
}

function rowOf({ id, concept, language, prompt, numbers, reason, answers }) {
  const row = element("tr");
  const cell = element("td");
  const text = (tag, words, kind, otherwise) =>
    known(words) && words !== ""
      ? element(tag, words, { class: kind, dir: "auto", lang: language })
      : element(tag, known(words) ? "(empty)" : otherwise, { class: "absent" });
  cell.append(
    element("div", [id, concept].filter(Boolean).join(" · "), { class: "meta" }),
    text("div", prompt, "prompt", "prompt not given"),
  );
  const said = element("dl");
  for (const [name, answer] of Object.entries(answers))
    said.append(element("dt", name), text("dd", answer, "answer", "not generated"));
  cell.append(said);
  if (reason) cell.append(element("div", reason, { class: "meta" }));
  row.append(cell, ...numbersOf(numbers));
  return row;
}

function meansOf(items, score) {
  const row = element("tr", "", { id: "means" });
  const scored = items.filter(({ numbers }) => known(numbers[0]) && known(numbers[1]));
  const mean = (column) =>
    scored.length
      ? scored.reduce((sum, { numbers }) => sum + numbers[column], 0) / scored.length
      : null;
  const name = `mean losses, ${data.score}`;
  row.append(element("td", name), ...numbersOf([mean(0), mean(1), score, mean(3)]).slice(0, 3));
  row.append(element("td"));
  return row;
}

function describe() {
  const { first, last, score, low, high, queries, floor, reason } = scoreOf(chosen);
  const window =
    chosen.site === "unembed"
      ? "readout above the last layer"
      : first === last
        ? `layer ${chosen.layer}`
        : `layers ${first}–${last}`;
  at("cell").textContent = `${data.languages[chosen.language]}, ${chosen.site}, ${window}`;
  const parts = [`${data.score} ${fixed(score)}`];
  if (known(low)) parts.push(`bootstrap interval ${fixed(low)} to ${fixed(high)}`);
  parts.push(count(queries, "question"));
  if (known(floor)) parts.push(`noise floor ${minus(floor.toExponential(1))}`);
  at("score").textContent = parts.join(" · ");
  at("reason").textContent = reason;
  at("legend").textContent = model.legend;
  const items = questions();
  at("rows").replaceChildren(meansOf(items, score), ...sorted(items).map(rowOf));
  at("columns").replaceChildren(
    ...["question and answers", ...COLUMNS.map(([name]) => name)].map((name, index) => {
      const column = index ? index - 1 : null;
      const head = element("th", "", { scope: "col", class: index ? "number" : "" });
      if (index && order.column === column)
        head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      const button = element("button", name, { type: "button", title: "sort" });
      button.addEventListener("click", () => {
        order = { column, descending: order.column !== column || !order.descending };
        describe();
        at("columns").children[index].firstChild.focus();
      });
      head.append(button);
      return head;
    }),
  );
}

function choose(cell) {
  chosen = cell;
  describe();
  return Plotly.relayout("plot", { shapes: outline() });
}

// A person's doing

function show(number) {
  model = data.models[number];
  model.grid ??= gridOf(model.figure);
  if (!chosen || !scoreOf(chosen)) chosen = highest();
  describe();
  return draw();
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
at("figure").addEventListener("keydown", (event) => {
  if (!(event.key in MOVES) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  choose(neighbour(chosen, ...MOVES[event.key]));
});

for (const [number, { name }] of data.models.entries())
  at("model").append(element("option", name, { value: number }));
at("choice").hidden = data.models.length < 2;
at("model").addEventListener("change", (event) => show(Number(event.target.value)));

const plot = element("div", "", { id: "plot" });
at("figure").append(plot);
show(0).then(() => {
  plot.on("plotly_click", ({ points: [point] }) => {
    const layer = model.layers.find((each) => String(each) === String(point.x));
    choose({ site: point.data.name, language: point.y, layer });
    at("figure").focus({ preventScroll: true });
  });
  const refit = () => Plotly.relayout("plot", fitted());
  addEventListener("resize", refit);
  dark.addEventListener("change", refit);
  document.documentElement.dataset.ready = "";
});
