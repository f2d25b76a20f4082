"use strict";

// Tables: a button in every header sorts by its column; missing values are last in both orders.
function keyOf(row, column, numeric) {
  const cell = row.cells[column];
  if (!numeric) return cell.textContent.trim();
  return cell.hasAttribute("data-value") ? Number(cell.getAttribute("data-value")) : null;
}

function inOrder(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return sign * order;
}

function sortBy(header) {
  const heads = Array.from(header.parentNode.cells);
  const numeric = header.classList.contains("number");
  const before = header.getAttribute("aria-sort");
  // First click: figures from the largest, words from A.
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const now = before === first ? other : first;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", now);
  const body = header.closest("table").tBodies[0];
  const column = heads.indexOf(header);
  const sign = now === "ascending" ? 1 : -1;
  Array.from(body.rows)
    .map((row) => [keyOf(row, column, numeric), row])
    .sort((a, b) => inOrder(a[0], b[0], sign))
    .forEach(([, row]) => body.append(row));
}

document.querySelectorAll("table.sortable th").forEach((header) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => sortBy(header));
});

// Copying: the clipboard if the browser allows it, else a selection, else the text is shown.
function copySelected(source) {
  const range = document.createRange();
  range.selectNodeContents(source);
  const selection = window.getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  return document.execCommand("copy");
}

async function copyText(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    source.closest("details").open = true; // hidden text cannot be selected
    return copySelected(source);
  }
}

document.querySelectorAll("button.copy").forEach((button) => {
  button.addEventListener("click", async () => {
    const done = await copyText(document.getElementById(button.dataset.from));
    const output = button.parentNode.querySelector("output");
    output.textContent = done ? "Copied." : "Select the text below and copy it.";
  });
});

// Saves the embedded profile as a file.
document.querySelectorAll("button.save").forEach((button) => {
  button.addEventListener("click", () => {
    const profiles = JSON.parse(document.getElementById("profiles").textContent);
    const text = JSON.stringify(profiles[Number(button.dataset.profile)], null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    link.download = "profile.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
});

document.querySelectorAll(".buttons").forEach((line) => { line.hidden = false; });
