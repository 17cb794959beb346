"use strict";
// The page is whole without this: it lets a reader sort tables by a click on a heading.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.value ?? cell.textContent;
        const value = parseFloat(text.replaceAll(",", ""));
        return Number.isNaN(value) ? text : value;
      };
      const order = (a, b) =>
        typeof a === "number" ? (typeof b === "number" ? a - b : -1)
          : typeof b === "number" ? 1 : a.localeCompare(b, "en", { numeric: true });
      const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
      body.append(...(falling ? rows.reverse() : rows));
    });
  });
}
