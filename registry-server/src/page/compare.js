// Two images of a repository side by side: layers, sizes, configuration, history.

import * as api from "./api.js";
import { bytes, digest, facts, h, path, plural, select, short, state, table } from "./dom.js";
import { crumbs } from "./lists.js";
import { configOf, entries, environment, isIndex, labels, layersOf, pairs, settings, sizeOf, steps } from "./read.js";

export async function compare({ name, query }) {
  const { a, b } = query;
  if (!a || !b) return { title: "Compare", body: [crumbs(name, true), state("Two tags are needed", "Choose them in the list of tags.")] };
  const tops = await Promise.all([a, b].map((reference) => api.manifest(name, reference)));
  const platforms = tops.map((top) => (isIndex(top) ? entries(top).images : null));
  const names = [...new Set(platforms.flatMap((images) => images?.map((one) => one.name) ?? []))];
  const platform = names.includes(query.platform) ? query.platform : names[0];
  const [one, other] = await Promise.all(tops.map((top, index) => side(name, top, platforms[index], platform)));
  const head = [
    crumbs(name, "Compare"),
    h("div", { class: "head" }, h("h1", {}, `${label(a)} and ${label(b)}`), names.length > 1
      ? select("Platform", names.map((one) => [one, one]), platform, (platform) => { location.hash = path(`compare/${name}`, { a, b, platform }); }) : null),
  ];
  const title = `${name}: ${label(a)} and ${label(b)}`;
  const without = !one ? a : !other ? b : null;
  if (without) return { title, body: [...head, state("Not comparable", `${label(without)} has no image for ${platform}.`)] };
  if (one.manifest.digest === other.manifest.digest) {
    return { title, body: [...head, state("They are the same", "Both are the same image, byte for byte.", h("p", {}, digest(one.manifest.digest)))] };
  }
  const shared = one.layers.filter((layer) => other.digests.has(layer.digest));
  const change = other.size - one.size;
  const added = other.layers.filter((layer) => !one.digests.has(layer.digest));
  const sum = (layers) => layers.reduce((sum, layer) => sum + layer.size, 0);
  return {
    title,
    body: [
      ...head,
      facts([
        [label(a), link(name, a, bytes(one.size))],
        [label(b), link(name, b, bytes(other.size))],
        ["Difference", `${change > 0 ? "+" : ""}${bytes(change)}`],
        ["Shared", `${plural(shared.length, "layer")}, ${bytes(sum(shared))}`],
        [`To pull for who has ${label(a)}`, bytes(sum(added))],
      ]),
      h("h2", {}, "Layers and history"), layers(one, other),
      section("How it runs", settings(one.config), settings(other.config)),
      section("Environment", environment(one.config), environment(other.config)),
      section("Labels", labels(one.config), labels(other.config)),
      section("Annotations", pairs(one.manifest.value.annotations), pairs(other.manifest.value.annotations)),
    ],
  };
}

const label = (reference) => (reference.includes(":") ? short(reference) : reference);
const link = (name, reference, text) => h("a", { href: path(`r/${name}${reference.includes(":") ? "@" : ":"}${reference}`) }, text);

async function side(name, top, images, platform) {
  const found = images?.find((one) => one.name === platform);
  if (images && !found) return null;
  const manifest = found ? await api.manifest(name, found.digest) : top;
  const config = await configOf(name, manifest);
  const layers = layersOf(manifest);
  return { manifest, config, layers, digests: new Set(layers.map((layer) => layer.digest)), size: sizeOf(manifest), steps: steps(manifest, config) };
}

// What the first has and the second has not, what both have, what only the second has; in their order.
function layers(one, other) {
  const key = (step) => step.layer?.digest ?? ` ${step.command}`;
  const [left, right] = [one.steps.map(key), other.steps.map(key)];
  let begin = 0;
  while (begin < left.length && begin < right.length && left[begin] === right[begin]) begin += 1;
  let end = 0;
  while (end < left.length - begin && end < right.length - begin && left.at(-1 - end) === right.at(-1 - end)) end += 1;
  const row = (kind, mark) => (step) => ({ class: kind, cells: [mark, h("code", {}, step.command || step.comment || "–"),
    step.layer ? bytes(step.layer.size) : "", step.layer ? digest(step.layer.digest) : ""] });
  const rows = [
    ...one.steps.slice(0, begin).map(row("same", "both")),
    ...one.steps.slice(begin, left.length - end).map(row("removed", "− first")),
    ...other.steps.slice(begin, right.length - end).map(row("added", "+ second")),
    ...one.steps.slice(left.length - end).map(row("same", "both")),
  ];
  return table("Layers and history", [["In", "nowrap"], ["Step", "text"], ["Size", "number inline"], ["Layer", "number inline"]], rows, "cards changes");
}

function section(title, one, other) {
  const [before, after] = [new Map(one), new Map(other)];
  const keys = [...new Set([...before.keys(), ...after.keys()])];
  const changed = keys.filter((key) => before.get(key) !== after.get(key));
  if (!keys.length) return null;
  if (!changed.length) return h("section", {}, h("h2", {}, title), h("p", { class: "muted" }, `The same: ${plural(keys.length, "entry", "entries")}.`));
  const value = (text, kind) => (text === undefined ? h("span", { class: "muted" }, "not set") : h("code", { class: kind }, text || "empty"));
  const rows = changed.map((key) => ({
    class: !before.has(key) ? "added" : !after.has(key) ? "removed" : "",
    cells: [h("code", { class: "tag" }, key), value(before.get(key), "removed-text"), value(after.get(key), "added-text")],
  }));
  return h("section", {}, h("h2", {}, title), table(title, [["Name"], ["First", "text"], ["Second", "text"]], rows, "changes"),
    changed.length < keys.length ? h("p", { class: "muted" }, `${plural(keys.length - changed.length, "more is", "more are")} the same.`) : null);
}
