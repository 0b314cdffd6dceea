"use strict";
// The full table, searched and sorted. Without it the table is there all the same.
function searchable(section, table) {
  const field = section.querySelector("input"), count = section.querySelector("output"), body = table.tBodies[0];
  const plain = (text) => text.toLowerCase().replaceAll(",", "");
  const rows = [...body.rows].map((row) => ({ row, text: plain(row.textContent), cells: [...row.cells].map((cell) => cell.textContent) }));
  function search() {
    const words = plain(field.value).split(/\s+/);
    for (const { row, text } of rows) row.hidden = !words.every((word) => text.includes(word));
    const left = rows.filter(({ row }) => !row.hidden).length;
    count.textContent = `${left.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  }
  function sort(column, heading) {
    const down = heading.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = ({ cells }) => cells[column].replaceAll(",", "");
    const empty = (a, b) => (key(a) === "") - (key(b) === "");
    rows.sort((a, b) => empty(a, b) || sign * (key(a) - key(b) || key(a).localeCompare(key(b))));
    body.append(...rows.map(({ row }) => row));
  }
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(column, heading));
  });
  field.addEventListener("input", search);
  field.closest("label").hidden = false;
  search();
}
document.querySelectorAll("#full").forEach((table) => searchable(table.closest("section"), table));
