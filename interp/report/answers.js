
// Answers: what models said, with the choices of their table.

function answersOf(table) {
  const made = element("section", "", { class: "answers" });
  const of = (name) => table.columns.find((column) => column.name === name);
  const [language, prompt] = [of("language"), of("prompt") ?? of("question")];
  const others = table.columns.filter((column) => column !== prompt && column !== language);
  // Where a column is chosen from or short throughout, it says which answer this is.
  const names = others.filter((column) => column.choices || column.number || NAMES.has(column.name));
  const texts = others.filter((column) => !names.includes(column));
  const list = element("div", "", { class: "said scroll", tabindex: 0, role: "region", "aria-label": "Answers" });
  const status = element("p", "", { role: "status" });
  const after = element("div");
  const entry = (row) => {
    const code = language?.values[row] ?? "";
    const text = (tag, value, kind) =>
      value === ""
        ? element(tag, "(empty)", { class: "absent" })
        : element(tag, value, { class: kind, dir: "auto", lang: code });
    const card = element("div");
    const about = [language, ...names]
      .filter((column) => column && textOf(column, row) !== "–")
      .map((column) => (NAMES.has(column.name) ? textOf(column, row) : `${column.name} ${textOf(column, row)}`));
    card.append(element("div", about.join(" · "), { class: "meta" }));
    if (prompt) card.append(text("div", prompt.values[row], "prompt"));
    const said = element("dl");
    for (const column of texts) said.append(element("dt", column.name), text("dd", column.values[row], "answer"));
    card.append(said);
    return card;
  };
  const show = (rows) => {
    status.textContent =
      rows.length === table.length ? count(table.length, "answer") : `${rows.length} of ${count(table.length, "answer")}`;
    listed(list, rows, entry, after);
  };
  const { line, left } = filters(table, show);
  show(left());
  made.append(heading("Answers"), element("p", table.caption), line, status, list, after);
  return made;
}

// Columns whose value needs no name before it.
const NAMES = new Set(["language", "query_id", "id", "concept"]);
