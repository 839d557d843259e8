
// Recovery: curves over the layers and a heatmap of languages by layers, with selectors.

const BANDS = 6; // with more lines than this, only the chosen one has its interval drawn

const COMPARED = "one line per";

function recoveryOf(recovery, name) {
  const { selectors, curves, score, scale, sites, caption, everywhere } = recovery;
  const [LANGUAGE, SITE] = [0, 1];
  const titles = selectors.map(({ labels }, index) =>
    index === SITE ? labels.map((site) => sites[site] ?? site) : labels,
  );
  const open = selectors.map((_, index) => index).filter((index) => titles[index].length > 1);
  const layers = [...new Set(curves.flatMap(({ layer }) => layer))].sort((a, b) => a - b);

  // What is shown: a curve's key, and the selector whose values are all drawn.
  let chosen = curves[0].key;
  let compared = open.includes(SITE) ? SITE : open[0] ?? SITE;

  // The curve that has most of what is wanted, and all of what it must have.
  function nearest(wanted, must) {
    let [best, most] = [null, -1];
    for (const curve of curves) {
      if (must.some((index) => curve.key[index] !== wanted[index])) continue;
      const shared = wanted.filter((value, index) => curve.key[index] === value).length;
      if (shared > most) [best, most] = [curve, shared];
    }
    return best;
  }

  const everything = selectors.map((_, index) => index);
  const find = (wanted) => nearest(wanted, everything);
  const changed = (index, value) => chosen.map((own, each) => (each === index ? value : own));

  // A curve for each value of the compared column. A setting that a value never goes with, as the
  // strength of another method, is replaced by one of its own, which then stands in the name.
  function lines() {
    return titles[compared].map((title, value) => {
      const wanted = changed(compared, value);
      const goesWith = (index) =>
        curves.some(({ key }) => key[compared] === value && key[index] === wanted[index]);
      const must = everything.filter(
        (index) => [compared, LANGUAGE, SITE].includes(index) || goesWith(index),
      );
      const curve = nearest(wanted, must);
      const others = everything
        .filter((index) => curve && curve.key[index] !== wanted[index])
        .map((index) => `${selectors[index].name} ${titles[index][curve.key[index]]}`);
      return { value, curve, title: others.length ? `${title} (${others.join(", ")})` : title };
    });
  }

  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function windowOf({ key, layer, first_layer: first, last_layer: last }, place) {
    if (selectors[SITE].values[key[SITE]] === "unembed") return "readout above the last layer";
    return first[place] === last[place] ? `layer ${layer[place]}` : `layers ${first[place]}–${last[place]}`;
  }

  function numbersOf(curve, place) {
    const parts = [`${score} ${fixed(curve.score[place])}`];
    if (known(curve.ci_low[place]))
      parts.push(`interval ${fixed(curve.ci_low[place])} to ${fixed(curve.ci_high[place])}`);
    parts.push(count(curve.num_queries[place] ?? 0, "question"));
    if (known(curve.noise_floor[place]))
      parts.push(`noise floor ${minus(curve.noise_floor[place].toExponential(1))}`);
    if (curve.reason[place]) parts.push(curve.reason[place]);
    return parts;
  }

  function hoverOf(curve, place) {
    const named = open.map((index) => titles[index][curve.key[index]]);
    const about = [named.join(", "), curve.also, windowOf(curve, place), ...numbersOf(curve, place)];
    return about.filter(Boolean).map(escaped).join("<br>");
  }

  // The intervals' outline, one polygon for each run of layers that have one.
  function bandOf({ layer, ci_low: low, ci_high: high }) {
    const [x, y] = [[], []];
    let run = [];
    const close = () => {
      if (run.length) {
        // A band without width would not be seen.
        const wide = run.length > 1 ? 0 : 0.2;
        const there = run.map((place, index) => layer[place] + (index ? wide : -wide));
        const ends = wide ? [there[0], there[0] + 2 * wide] : there;
        const places = wide ? [run[0], run[0]] : run;
        x.push(...ends, ...[...ends].reverse(), ends[0], null);
        y.push(...places.map((each) => high[each]), ...places.map((each) => low[each]).reverse(), high[places[0]], null);
      }
      run = [];
    };
    layer.forEach((_, place) => (known(low[place]) ? run.push(place) : close()));
    close();
    return { x, y };
  }

  // Elements

  const made = element("section", "", { class: "recovery" });
  const choices = element("div", "", { class: "choices", role: "group", "aria-label": "What is shown" });
  const selects = new Map();
  for (const index of open) {
    const select = selector(titles[index].map((label, value) => [value, label]), selectors[index].name);
    select.addEventListener("change", () => {
      chosen = nearest(changed(index, Number(select.value)), [index]).key;
      show();
    });
    selects.set(index, select);
    choices.append(labelled(selectors[index].name, select));
  }
  if (open.length) {
    const select = selector(open.map((index) => [index, selectors[index].name]), COMPARED);
    select.value = String(compared);
    select.addEventListener("change", () => {
      compared = Number(select.value);
      show();
    });
    choices.append(labelled(COMPARED, select));
  }
  const status = element("p", "", { role: "status" });
  const pair = element("div", "", { class: "pair" });
  const [curvesPlot, heatmapPlot] = ["curves", "heatmap"].map((kind) => {
    const plot = element("div", "", { class: kind, role: "img" });
    const note = element("figcaption");
    const place = element("div", "", { class: "drawing" });
    const figure = element("figure");
    place.append(plot);
    figure.append(place, note);
    pair.append(figure);
    return { plot, note };
  });
  made.append(heading(name), element("p", caption), choices, status, pair);
  if (everywhere) made.append(element("p", everywhere, { class: "meta" }));

  // Figures

  function styled(layout) {
    const [ink, line, grid] = isDark() ? ["#e6e6e6", "#8a8f96", "#3a3e44"] : ["#202020", "#404040", "#e6e6e6"];
    const axis = { showline: true, linecolor: line, tickcolor: line, gridcolor: grid, zeroline: false, automargin: true };
    return {
      ...CLEAR,
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
      dragmode: false,
      ...layout,
      xaxis: { ...axis, title: { text: "layer (window centre)" }, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    };
  }

  function drawCurves() {
    const drawn = lines();
    const missing = drawn.filter(({ curve }) => !curve).map(({ title }) => title);
    const there = drawn.filter(({ curve }) => curve);
    const all = there.length <= BANDS;
    const looks = ({ value }) => {
      const rgb = data.colours[value % data.colours.length];
      const dash = data.dashes[Math.floor(value / data.colours.length) % data.dashes.length];
      return { rgb: rgb === "0,0,0" && isDark() ? "230,230,230" : rgb, dash, strong: value === chosen[compared] };
    };
    const bands = there
      .filter((line) => all || looks(line).strong)
      .map((line) => ({
        ...bandOf(line.curve),
        type: "scatter", mode: "lines", fill: "toself", line: { width: 0 }, hoverinfo: "skip",
        fillcolor: `rgba(${looks(line).rgb},0.18)`, legendgroup: String(line.value), showlegend: false,
      }));
    const traces = there.map((line) => {
      const { rgb, dash, strong } = looks(line);
      const { curve, title, value } = line;
      return {
        type: "scatter", mode: "lines+markers", x: curve.layer, y: curve.score, name: escaped(title),
        line: { color: `rgb(${rgb})`, dash, width: strong ? 4 : 2 }, marker: { size: strong ? 7 : 5 },
        hovertext: curve.layer.map((_, place) => hoverOf(curve, place)), hoverinfo: "text",
        legendgroup: String(value), showlegend: true,
      };
    });
    // All entries of a legend are as wide as the widest.
    const entry = Math.max(...there.map(({ title }) => title.length)) * 7.5 + 50;
    const across = Math.max(1, Math.floor((curvesPlot.plot.clientWidth - 70) / entry));
    const below = 70 + 20 * Math.ceil(there.length / across);
    const layout = styled({
      width: curvesPlot.plot.clientWidth,
      height: 310 + below,
      margin: { l: 60, r: 10, t: 10, b: below },
      yaxis: { title: { text: score }, zeroline: true, zerolinecolor: "#808080" },
      xaxis: { showgrid: false },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom" },
    });
    Plotly.react(curvesPlot.plot, [...bands, ...traces], layout, MODE_BAR);
    curvesPlot.note.textContent = [
      `${score} over the layers, ${COMPARED} ${selectors[compared].name}; the thick one is chosen above.`,
      `${all ? "Bands" : "Its band"}: 95 % bootstrap interval over questions.`,
      missing.length ? `Not measured with these choices: ${missing.join(", ")}.` : "",
    ].join(" ");
  }

  function drawHeatmap() {
    const rows = titles[LANGUAGE].map((_, language) => find(changed(LANGUAGE, language)));
    const cells = rows.map((curve) => layers.map((layer) => (curve ? curve.layer.indexOf(layer) : -1)));
    const each = (value) => cells.map((row, y) => row.map((place, x) => (place < 0 ? null : value(rows[y], place, x))));
    const short = heatmapPlot.plot.clientWidth < 520;
    const labels = short ? selectors[LANGUAGE].values : titles[LANGUAGE];
    const step = [1, 2, 5, 10, 20].find((every) => (every * heatmapPlot.plot.clientWidth) / layers.length > 40) ?? 50;
    const shared = {
      type: "heatmap", x: layers, y: selectors[LANGUAGE].values, xgap: 1, ygap: 1, hoverongaps: false,
      hovertext: each((curve, place) => hoverOf(curve, place)), hoverinfo: "text",
    };
    const undefinedCells = each((curve, place) => (known(curve.score[place]) ? null : 1));
    const traces = [{ ...shared, z: each((curve, place) => curve.score[place]), coloraxis: "coloraxis" }];
    if (undefinedCells.flat().some(known))
      traces.push({ ...shared, z: undefinedCells, colorscale: [[0, "#b3b3b3"], [1, "#b3b3b3"]], showscale: false });
    const row = chosen[LANGUAGE];
    const box = { type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: row - 0.5, y1: row + 0.5 };
    const layout = styled({
      width: heatmapPlot.plot.clientWidth,
      height: 120 + 26 * rows.length + (rows.length < 6 ? 100 : 40),
      margin: { l: 10, r: 10, t: 10, b: 60 },
      coloraxis: { ...scale, colorbar: { ...scale.colorbar, lenmode: "fraction", len: 1 } },
      xaxis: { type: "category", tickvals: layers.filter((_, index) => index % step === 0), showgrid: false },
      yaxis: {
        type: "category", categoryarray: selectors[LANGUAGE].values, range: [rows.length - 0.5, -0.5],
        tickvals: selectors[LANGUAGE].values, ticktext: labels.map(escaped), showgrid: false,
      },
      // Seen on every colour: black with a white edge.
      shapes: [["#ffffff", 5], ["#000000", 2.5]].map(([color, width]) => ({ ...box, line: { color, width } })),
    });
    Plotly.react(heatmapPlot.plot, traces, layout, MODE_BAR);
    const undefinedNote = traces.length > 1 ? " Grey: undefined." : "";
    heatmapPlot.note.textContent = `${score} by language and layer: ${open
      .filter((index) => index !== LANGUAGE)
      .map((index) => titles[index][chosen[index]])
      .join(", ")}. Empty: not measured.${undefinedNote}`;
  }

  function describe() {
    const curve = find(chosen);
    const best = curve.score.reduce((most, value, place) => (known(value) && !(value <= (curve.score[most] ?? -Infinity)) ? place : most), 0);
    const named = open.map((index) => titles[index][chosen[index]]).join(", ");
    status.textContent = `${named ? `${named}: ` : ""}highest at ${windowOf(curve, best)}, ${numbersOf(curve, best).join(" · ")}`;
    for (const { plot } of [curvesPlot, heatmapPlot]) plot.setAttribute("aria-label", status.textContent);
  }

  function draw() {
    drawCurves();
    drawHeatmap();
    made.dataset.drawn = "";
  }

  function show() {
    for (const [index, select] of selects) select.value = String(chosen[index]);
    describe();
    if (made.dataset.drawn === "") draw();
  }

  show();
  drawWhenNear(pair, draw);
  addEventListener("resize", () => made.dataset.drawn === "" && draw());
  return made;
}
