"use strict";
// What a model wrote reaches the page through text nodes and attributes' values only, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 10 ** -digits)) return value.toPrecision(2);
  return Number.isInteger(value) ? String(value) : value.toFixed(size >= 1000 ? 0 : digits);
}

function pairs(rows) {
  return html("dl", { class: "pairs" }, ...rows.map(([name, text]) => html("div", {}, html("dt", {}, name), html("dd", {}, text))));
}

// A button that is on or off.
function toggle(label, on, changed, ...before) {
  const button = html("button", { type: "button", class: "switch", "aria-pressed": String(on) }, ...before, label);
  button.addEventListener("click", () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    changed(now);
  });
  return button;
}

function choice(label, options, chosen, changed) {
  const select = html("select", {}, ...options.map((text, index) => html("option", { value: index }, text)));
  select.value = String(chosen);
  select.addEventListener("change", () => changed(Number(select.value)));
  return html("label", {}, html("span", {}, label), select);
}

function pick(index) {
  document.dispatchEvent(new CustomEvent("pick", { detail: index }));
}
