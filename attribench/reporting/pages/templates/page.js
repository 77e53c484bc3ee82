"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// A table sorts by the column whose button is pressed; missing values stay at the end.
for (const button of all("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
    const falling = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : !head.classList.contains("text");
    all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return falling ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });
}

// One setting at a time; the address remembers which.
const dataset = document.getElementById("dataset"), setting = document.getElementById("setting");
function showSetting(wanted) {
  const sections = all("[data-dataset]");
  let shown = sections.find((section) => section.id === wanted);
  if (!shown) shown = sections.find((section) => section.dataset.dataset === dataset.value);
  dataset.value = shown.dataset.dataset;
  setting.replaceChildren(...sections.filter((section) => section.dataset.dataset === dataset.value)
    .map((section) => new Option(section.dataset.setting, section.id, false, section === shown)));
  sections.forEach((section) => { section.hidden = section !== shown; });
}
if (dataset) {
  dataset.addEventListener("change", () => { showSetting(""); history.replaceState(null, "", "#" + setting.value); });
  setting.addEventListener("change", () => { showSetting(setting.value); history.replaceState(null, "", "#" + setting.value); });
  addEventListener("hashchange", () => { if (document.querySelector(location.hash + "[data-dataset]")) showSetting(location.hash.slice(1)); });
  showSetting(location.hash.slice(1));
}

// One query of a gallery at a time.
for (const choice of all("select.query")) {
  const queries = all(".query", choice.closest(".gallery")).filter((element) => element !== choice);
  const show = () => queries.forEach((element) => { element.hidden = element.id !== choice.value; });
  choice.addEventListener("change", show);
  for (const button of all("button[data-step]", choice.closest(".gallery"))) {
    button.addEventListener("click", () => {
      const count = choice.options.length;
      choice.selectedIndex = (choice.selectedIndex + Number(button.dataset.step) + count) % count;
      show();
    });
  }
  show();
}

const heat = document.getElementById("heat");
if (heat) heat.addEventListener("change", () => document.body.classList.toggle("plain", !heat.checked));
