// Elements, and words for numbers and times. Whatever the registry says becomes text here, never markup.

// An element: properties that are functions are listeners, `class` and all else are attributes, children are nodes or text.
export function h(name, properties, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

export function append(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

// A link within the page; what is part of a name is encoded.
export const path = (name, query) => {
  const parameters = new URLSearchParams();
  for (const [key, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== "") parameters.set(key, value);
  }
  const text = parameters.toString();
  return `#/${name}${text ? `?${text}` : ""}`;
};

const units = ["B", "kB", "MB", "GB", "TB", "PB"];

export function bytes(count) {
  if (typeof count !== "number" || !Number.isFinite(count)) return "–";
  let [value, unit] = [Math.abs(count), 0];
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${count < 0 ? "−" : ""}${value.toFixed(digits)} ${units[unit]}`;
}

export const number = (count) => count.toLocaleString("en-US");
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

const steps = [[60, "minute"], [60, "hour"], [24, "day"], [30.44, "month"], [12, "year"]];

function ago(date) {
  let [value, unit] = [(Date.now() - date.getTime()) / 1000, "second"];
  if (value < 60) return "just now";
  for (const [size, next] of steps) {
    if (value < size) break;
    [value, unit] = [value / size, next];
  }
  const count = Math.floor(value);
  return `${count} ${unit}${count === 1 ? "" : "s"} ago`;
}

// A time as how long ago, with the time itself as a title; nothing of what is none.
export function when(text) {
  const date = new Date(text ?? NaN);
  if (Number.isNaN(date.getTime()) || date.getTime() <= 0) return null;
  return h("time", { datetime: date.toISOString(), title: date.toISOString().replace("T", " ").replace(".000Z", " UTC") }, ago(date));
}

export const short = (digest) => String(digest).replace(/^([a-z0-9]+:)?([0-9a-f]{12}).*$/, "$2");

export function say(text) {
  document.getElementById("status").textContent = text;
}

export function copyButton(text, what) {
  const button = h("button", { type: "button", class: "copy", "aria-label": `Copy ${what}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without https there is no clipboard but this one.
      const field = h("textarea", { class: "hidden" }, text);
      (button.closest("dialog") ?? document.body).append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    button.textContent = "Copied";
    say(`Copied ${what}`);
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return button;
}

export function digest(text) {
  return h("span", { class: "digest" }, h("code", { title: text }, short(text)), copyButton(text, "digest"));
}

export function commands(lines) {
  return h("div", { class: "pulls" }, lines.map((line) => h("div", {}, h("code", { tabindex: 0 }, line), copyButton(line, line))));
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts-row" }, shown.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
}

// Columns are [heading, class]; rows are cells, or { class, cells }.
export function table(caption, columns, rows, kind = "") {
  const cell = (value, index) => h("td", { class: columns[index][1] }, value);
  return h("div", { class: "scroll" }, h("table", { class: kind },
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, columns.map(([heading, kind]) => h("th", { scope: "col", class: kind?.startsWith("number") ? "number" : null }, heading)))),
    h("tbody", {}, rows.map((row) => h("tr", { class: row.class }, (row.cells ?? row).map(cell))))));
}

export function state(title, text, ...more) {
  return h("div", { class: "state" }, h("h2", {}, title), text ? h("p", {}, text) : null, more);
}

export function pager(total, offset, size, link) {
  if (total <= size && offset === 0) return null;
  const last = Math.min(offset + size, total);
  const step = (name, to, there) => there
    ? h("a", { class: "button", href: link(to) }, name)
    : h("button", { type: "button", disabled: true }, name);
  return h("nav", { class: "pages", "aria-label": "Pages" },
    step("Previous", Math.max(0, offset - size), offset > 0),
    step("Next", offset + size, last < total),
    h("span", {}, last > offset ? `${number(offset + 1)}–${number(last)} of ${number(total)}` : `none of ${number(total)}`));
}

export function select(label, options, value, onchange) {
  const box = h("select", { "aria-label": label, onchange: () => onchange(box.value) },
    options.map(([key, name]) => h("option", { value: key, selected: key === value }, name)));
  return box;
}

// Calls `then` with what was typed once it was not changed for a moment.
export function filter(label, value, then) {
  let timer;
  const input = h("input", { type: "search", "aria-label": label, placeholder: label, value, spellcheck: "false", autocomplete: "off",
    autocapitalize: "off", maxlength: 200, oninput: () => {
      clearTimeout(timer);
      timer = setTimeout(() => input.isConnected && then(input.value.trim()), 250);
    } });
  return input;
}

export function save(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name.replace(/[^\w.@-]+/g, "-") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
