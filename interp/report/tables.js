
// Tables: sorted by a click on a column, filtered by its values and by a text.

const AT_ONCE = 200; // rows in the page; a button shows the others

const shownNumber = (value) =>
  !known(value) ? "–" : Number.isInteger(value) ? minus(String(value)) : minus(String(Number(value.toPrecision(4))));

// A value of a column as a text: what is searched, and what stands in a cell.
function textOf(column, row) {
  const value = column.values[row];
  return column.number ? shownNumber(value) : column.choices?.[value] ?? (value || "–");
}

const keyOf = (column, row) => (column.keys ?? column.values)[row];

const several = data.studies.length > 1;

// A section's heading: below the page's title, or below its study's where there are several.
const heading = (text, depth = 0) =>
  element(`h${2 + depth + (several ? 1 : 0)}`, text, { class: depth ? "sub" : "part" });

let numControls = 0;

// A control with its label, for a line of choices.
function labelled(name, control) {
  control.id = `control-${numControls++}`;
  const pair = element("span");
  pair.append(element("label", name, { for: control.id }), " ", control);
  return pair;
}

function selector(choices, name) {
  const select = element("select", "", { name });
  for (const [value, label] of choices) select.append(element("option", label, { value }));
  return select;
}

// Selectors for the columns that have choices, and a search: what they leave, on every change.
function filters(table, changed) {
  const line = element("div", "", { class: "choices", role: "group", "aria-label": "Filters" });
  const selects = [];
  for (const column of table.columns) {
    if (!column.choices) continue;
    const select = selector([["", "all"], ...Object.entries(column.choices)], column.name);
    select.addEventListener("change", () => changed(left()));
    selects.push([column, select]);
    line.append(labelled(column.name, select));
  }
  const search = element("input", "", { type: "search", name: "search" });
  search.addEventListener("input", () => changed(left()));
  line.append(labelled("search", search));
  const left = () => {
    const wanted = selects
      .filter(([, select]) => select.selectedIndex > 0)
      .map(([column, select]) => [column, select.value]);
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return [...Array(table.length).keys()].filter(
      (row) =>
        wanted.every(([column, value]) => keyOf(column, row) === value) &&
        words.every((word) =>
          table.columns.some((column) => textOf(column, row).toLowerCase().includes(word)),
        ),
    );
  };
  return { line, left };
}

// A button that shows what is left of a long list; every row once, in the rows' order.
function listed(into, rows, make, after) {
  into.replaceChildren(...rows.slice(0, AT_ONCE).map(make));
  after.replaceChildren();
  if (rows.length <= AT_ONCE) return;
  const more = element("button", `show all ${rows.length} (${AT_ONCE} are shown)`, { type: "button", class: "more" });
  more.addEventListener("click", () => {
    into.append(...rows.slice(AT_ONCE).map(make));
    after.replaceChildren();
  });
  after.append(more);
}

function inOrder(rows, { column, descending }) {
  if (!column) return rows;
  const [there, missing] = [[], []];
  for (const row of rows) (known(column.values[row]) ? there : missing).push(row);
  const compare = column.number
    ? (a, b) => column.values[a] - column.values[b]
    : (a, b) => textOf(column, a).localeCompare(textOf(column, b), "en", { numeric: true });
  there.sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
  return [...there, ...missing];
}

function tableOf(table) {
  const made = element("section", "", { class: "table" });
  made.append(heading(table.name, 1), element("p", table.caption));
  const order = { column: null, descending: false };
  const status = element("p", "", { role: "status" });
  const body = element("tbody");
  const after = element("div");
  const rowOf = (row) => {
    const line = element("tr");
    for (const column of table.columns)
      line.append(
        element("td", textOf(column, row), column.number ? { class: "number" } : { dir: "auto" }),
      );
    return line;
  };
  const show = (rows) => {
    status.textContent =
      rows.length === table.length ? count(table.length, "row") : `${rows.length} of ${count(table.length, "row")}`;
    listed(body, inOrder(rows, order), rowOf, after);
  };
  const { line, left } = filters(table, show);
  const head = element("tr");
  for (const column of table.columns) {
    const cell = element("th", "", { scope: "col", class: column.number ? "number" : "" });
    const button = element("button", column.name, { type: "button", title: "sort" });
    button.addEventListener("click", () => {
      // Numbers are of interest from their upper end.
      order.descending = order.column === column ? !order.descending : column.number;
      order.column = column;
      for (const each of head.children) each.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      show(left());
    });
    cell.append(button);
    head.append(cell);
  }
  const scroll = element("div", "", { class: "scroll", tabindex: 0, role: "region", "aria-label": table.name });
  const rows = element("table");
  const top = element("thead");
  top.append(head);
  rows.append(top, body);
  scroll.append(rows);
  show(left());
  // Where everything is seen at once there is nothing to filter.
  if (table.length > 8) made.append(line);
  made.append(status, scroll, after);
  return made;
}
