
// The page: every study's sections, and links to them.

function listOf(values, kind) {
  const list = element("dl", "", { class: kind });
  for (const [name, value] of Object.entries(values))
    list.append(element("dt", name), element("dd", value));
  return list;
}

function aboutOf({ about, settings }) {
  const made = element("section");
  const more = element("details");
  more.append(element("summary", "settings"), listOf(settings, "settings"));
  made.append(heading("What was run"), listOf(about, "about"), more);
  if (about.command) made.querySelector("dt + dd").replaceChildren(element("code", about.command));
  return made;
}

// The interval as a bar about 0, beside its numbers.
function intervalOf({ value, ci_low: low, ci_high: high, verdict }) {
  const made = (tag, attributes) => {
    const each = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, given] of Object.entries(attributes)) each.setAttribute(name, given);
    return each;
  };
  const [from, to] = [low ?? value, high ?? value];
  const end = Math.max(Math.abs(from), Math.abs(to)) || 1;
  const x = (number) => 60 + (55 * number) / end;
  const drawn = made("svg", { class: `interval ${verdict}`, viewBox: "0 0 120 14", "aria-hidden": "true" });
  drawn.append(
    made("line", { x1: 60, x2: 60, y1: 0, y2: 14 }),
    made("rect", { x: x(from), y: 5.5, width: Math.max(1, x(to) - x(from)), height: 3 }),
    made("circle", { cx: x(value), cy: 7, r: 4 }),
  );
  return drawn;
}

function findingsOf(findings) {
  const made = element("section", "", { class: "findings" });
  const counts = {};
  for (const { verdict } of findings) counts[verdict] = (counts[verdict] ?? 0) + 1;
  const summed = Object.entries(counts).map(([verdict, number]) => `${number} ${verdict}`);
  made.append(
    heading("Findings"),
    element("p", `${summed.join(", ")}. Seen: the 95 % interval is above 0; contradicted: below; undecided: 0 is in it.`),
  );
  const table = element("table");
  const names = ["here", "expected", "decided by (above 0)", "value, 95 % interval"];
  const head = element("tr");
  names.forEach((name, index) => head.append(element("th", name, { scope: "col", class: index === 3 ? "number" : "" })));
  const body = element("tbody");
  for (const finding of findings) {
    const { signature, source, verdict, quantity, value, ci_low: low, ci_high: high, n, note } = finding;
    const row = element("tr");
    const expected = element("td", signature);
    expected.append(element("div", source, { class: "meta" }));
    const decided = element("td", quantity, { "data-name": names[2] });
    if (note) decided.append(element("div", note, { class: "meta" }));
    const numbers = element("td", "", { class: "number", "data-name": "value" });
    if (known(value)) {
      numbers.append(shownNumber(value));
      if (known(low)) numbers.append(` (${shownNumber(low)} to ${shownNumber(high)})`);
      if (known(n)) numbers.append(`, n = ${n}`);
      numbers.append(intervalOf(finding));
    } else numbers.append("–");
    row.append(element("td", verdict, { class: `verdict ${verdict}` }), expected, decided, numbers);
    body.append(row);
  }
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  made.append(table);
  return made;
}

function sectionOf(name, parts) {
  const made = element("section");
  made.append(heading(name), ...parts);
  return made;
}

data.studies.forEach((study, number) => {
  const article = element("article");
  if (several) article.append(element("h2", study.title, { class: "study" }));
  const sections = [aboutOf(study)];
  if (study.findings.length) sections.push(findingsOf(study.findings));
  if (study.recovery) sections.push(recoveryOf(study.recovery, "Recovery by layer"));
  if (study.figures.length) sections.push(sectionOf("Figures", study.figures.map(drawingOf)));
  if (study.answers) sections.push(answersOf(study.answers));
  if (study.tables.length) sections.push(sectionOf("Tables", study.tables.map(tableOf)));
  if (study.limits) article.append(element("p", `What this does not say. ${study.limits}`, { class: "limits" }));
  article.append(...sections);
  at("studies").append(article);
  const targets = several ? [article.querySelector(".study")] : sections.map((each) => each.querySelector(".part"));
  targets.forEach((target, index) => {
    target.id = `section-${number}-${index}`;
    at("contents").append(element("a", target.textContent, { href: `#${target.id}` }));
  });
});
document.documentElement.dataset.ready = "";
