// Tables that sort: a click, or Enter, on a column's heading. Numbers sort by value, "94.15 ± 1.53" by its 94.15, and
// what is neither measured nor known comes last.
"use strict";

const EMPTY = /^(–|-|not run.*|not verified|not measured)?$/;

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  if (EMPTY.test(text)) return null;
  const number = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(table, heading) {
  const body = table.tBodies[0];
  const column = heading.cellIndex;
  const rows = [...body.rows].map((row) => ({ row, key: value(row, column) }));
  const first = rows.some(({ key }) => typeof key === "number") ? "descending" : "ascending";
  const second = first === "descending" ? "ascending" : "descending";
  const direction = heading.getAttribute("aria-sort") === first ? second : first;
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : sign * compare(a.key, b.key)));
  body.append(...rows.map(({ row }) => row));
  for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
}

function makeSortable(table) {
  const cells = [...table.rows].flatMap((row) => [...row.cells]);
  if (!table.tHead || table.tHead.rows.length !== 1 || table.tBodies.length !== 1) return;
  if (table.tBodies[0].rows.length < 2 || cells.some((cell) => cell.colSpan > 1 || cell.rowSpan > 1)) return;
  for (const heading of table.tHead.rows[0].cells) {
    heading.setAttribute("aria-sort", "none");
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(table, heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sort(table, heading);
    });
  }
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("article table").forEach(makeSortable));
