"use strict";

// All text of models enters the page through `write`, as text nodes and never as markup.

const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** An element with attributes and children; strings become text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Write text with invisible characters spelled out and the search words marked. */
function write(target, text, wanted = "") {
  target.replaceChildren();
  let at = 0;
  for (const found of text.matchAll(UNSEEN)) {
    writeMarked(target, text.slice(at, found.index), wanted);
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    target.append(element("span", { class: "unseen", title: "an invisible character" }, `U+${code}`));
    at = found.index + found[0].length;
  }
  writeMarked(target, text.slice(at), wanted);
}

function writeMarked(target, text, wanted) {
  if (!wanted) return void target.append(text);
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return void target.append(text); // letters whose lower case is longer
  let at = 0;
  for (let next = lower.indexOf(wanted); next >= 0; next = lower.indexOf(wanted, at)) {
    target.append(text.slice(at, next), element("mark", {}, text.slice(next, next + wanted.length)));
    at = next + wanted.length;
  }
  target.append(text.slice(at));
}

/** The page's data, from gzipped JSON in base64. */
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const isTyping = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);

addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details.printed")) one.open = true;
});
