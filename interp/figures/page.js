"use strict";

// What the programs of all pages share: the data, elements, numbers in words, light and dark.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const minus = (text) => text.replace(/-/g, "−");
const known = (value) => value !== null && value !== undefined;
const fixed = (value) => (known(value) ? minus(value.toFixed(3)) : "undefined");
const precise = (value) => (known(value) ? minus(value.toPrecision(4)) : "–");
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// An element with a text: what stands in the data is never read as HTML.
function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const CLEAR = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
const MODE_BAR = { displaylogo: false, modeBarButtons: [["toImage"]] };
