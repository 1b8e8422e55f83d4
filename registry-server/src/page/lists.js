// Lists: repositories, and the tags of one. Both come in pages.

import * as api from "./api.js";
import { bytes, commands, digest, filter, h, number, pager, path, plural, select, state, table, when } from "./dom.js";

const SIZE = 25;

const go = (place, query) => { location.hash = path(place, query); };
const start = (query) => Math.max(0, Number.parseInt(query.from ?? "0", 10) || 0);

export async function repositories({ query }) {
  const q = query.q ?? "";
  const sort = query.sort ?? (q ? "" : "name");
  const from = start(query);
  const told = await api.search({ q, sort, n: SIZE, offset: from });
  const orders = [["name", "By name"], ["-date", "Last changed first"]];
  if (q) orders.unshift(["", "Best match first"]);
  const list = told.results.length
    ? h("ul", { class: "list" }, told.results.map(repository))
    : q
      ? state("Nothing found", `No repository, tag or description that you may see has “${q}”.`, h("a", { class: "button", href: "#/" }, "All repositories"))
      : from > 0 ? state("Nothing here", null, h("a", { class: "button", href: "#/" }, "To the first page")) : empty();
  return {
    title: q ? `Search: ${q}` : "Repositories",
    body: [
      h("div", { class: "head" }, h("h1", {}, q ? `Results for “${q}”` : "Repositories"),
        h("div", { class: "row" }, told.total ? h("span", { class: "muted" }, plural(told.total, "repository", "repositories")) : null,
          told.total > 1 ? select("Order", orders, sort, (sort) => go("", { q, sort })) : null)),
      told.complete ? null : h("p", { class: "note" }, "The registry is still being read: this list is not whole yet. ",
        h("button", { type: "button", class: "plain", onclick: () => dispatchEvent(new Event("longshore:again")) }, "Look again")),
      list,
      pager(told.total, from, SIZE, (from) => path("", { q, sort: query.sort, from })),
    ],
  };
}

function repository(one) {
  const at = one.name.lastIndexOf("/") + 1;
  return h("li", {}, h("a", { class: "repository", href: path(`r/${one.name}`) },
    h("span", { class: "name" }, one.name.slice(0, at), h("b", {}, one.name.slice(at))),
    h("span", { class: "facts" }, plural(one.tags, "tag"), one.changed ? [" · ", when(one.changed)] : null),
    one.description ? h("span", { class: "says" }, one.description) : null,
    one.found_tags.length ? h("span", { class: "says" }, "Tags: ", one.found_tags.join(", ")) : null));
}

function empty() {
  if (!api.about.user && api.about.login) {
    return state("Nothing here for everybody", "There may be more for those who sign in.");
  }
  const name = `${location.host}/app:1.0`;
  return state("No repositories yet", "Push an image, and it appears here.",
    commands([`longshore build -t ${name} --push .`, `docker push ${name}`]));
}

export function pulls(name, reference) {
  const full = `${location.host}/${name}${reference.includes(":") ? "@" : ":"}${reference}`;
  return commands(["longshore", "docker", "podman"].map((tool) => `${tool} pull ${full}`));
}

export function crumbs(name, last) {
  return h("nav", { class: "crumbs", "aria-label": "Where you are" }, h("a", { href: "#/" }, "Repositories"), " / ",
    last ? [h("a", { href: path(`r/${name}`) }, name), last === true ? null : [" / ", last]] : name);
}

export async function tags({ name, query }) {
  const [q, sort, from] = [query.q ?? "", query.sort ?? "-date", start(query)];
  const told = await api.tags(name, { q, sort, n: SIZE, offset: from });
  const here = (more) => go(`r/${name}`, { q, sort, ...more });
  const picked = new Set();
  const button = h("button", { type: "button", disabled: true, onclick: () => {
    const [a, b] = told.tags.map((tag) => tag.tag).filter((tag) => picked.has(tag)).reverse();
    go(`compare/${name}`, { a, b });
  } }, "Compare two");
  const pick = (tag) => h("input", { type: "checkbox", "aria-label": `Choose ${tag} to compare`, onchange: (event) => {
    if (event.target.checked) picked.add(tag);
    else picked.delete(tag);
    button.disabled = picked.size !== 2;
  } });
  const rows = told.tags.map((tag) => [
    pick(tag.tag),
    h("a", { class: "tag", href: path(`r/${name}:${tag.tag}`) }, tag.tag),
    h("span", { class: "nowrap" }, when(tag.pushed)),
    kinds(tag),
    tag.mediaType ? bytes(tag.size) : "–",
    digest(tag.digest),
  ]);
  const columns = [[h("span", { class: "hidden" }, "Compare"), "pick"], ["Tag"], ["Pushed", "inline"], ["Platforms"], ["Size", "number inline"], ["Digest", "number inline"]];
  const list = rows.length
    ? table(`Tags of ${name}`, columns, rows, "cards")
    : q ? state("No such tag", `No tag has “${q}” in it.`) : state("No tags", "What was pushed here has no tag, or its tags were removed.");
  return {
    title: name,
    body: [
      crumbs(name),
      h("div", { class: "head" }, h("div", {}, h("h1", {}, name), told.description ? h("p", { class: "muted" }, told.description) : null),
        h("span", { class: "muted" }, plural(told.total, q ? "tag found" : "tag", q ? "tags found" : "tags"))),
      h("div", { class: "tools" },
        h("div", { class: "grow" }, filter("Filter tags", q, (q) => here({ q }))),
        select("Order", [["-date", "Newest first"], ["date", "Oldest first"], ["name", "By name"], ["-name", "By name, last first"]], sort, (sort) => here({ sort })),
        told.tags.length > 1 ? button : null),
      list,
      pager(told.total, from, SIZE, (from) => path(`r/${name}`, { q, sort: query.sort, from })),
    ],
  };
}

function kinds(tag) {
  if (!tag.mediaType) return h("span", { class: "muted" }, "cannot be read");
  const names = tag.platforms.map((one) => one.platform);
  const shown = names.slice(0, 4).map((name) => h("span", { class: "chip" }, name));
  if (names.length > 4) shown.push(h("span", { class: "chip", title: names.join(", ") }, `${number(names.length - 4)} more`));
  if (!shown.length && tag.artifactType) shown.push(h("span", { class: "chip" }, tag.artifactType));
  return h("div", { class: "chips" }, shown);
}
