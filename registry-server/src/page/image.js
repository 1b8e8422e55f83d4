// One image: its platforms, layers and history, configuration, what is attached to it, and the manifest itself.

import * as api from "./api.js";
import { attached } from "./attached.js";
import { append, bytes, copyButton, digest, facts, h, path, save, say, select, short, state, table, when } from "./dom.js";
import { crumbs, pulls } from "./lists.js";
import { configOf, entries, environment, isIndex, labels, layersOf, pairs, settings, sizeOf, steps, text } from "./read.js";

const TABS = [["layers", "Layers"], ["config", "Configuration"], ["attached", "Attached"], ["manifest", "Manifest"]];

export async function image({ name, reference, query }) {
  const top = await api.manifest(name, reference);
  const index = isIndex(top) ? entries(top) : null;
  const chosen = index?.images.find((one) => one.name === query.platform) ?? index?.images[0];
  const shown = chosen ? await api.manifest(name, chosen.digest).catch(missing) : index ? null : top;
  const config = shown ? await configOf(name, shown).catch(missing) : null;
  const may = await api.tags(name, { n: 0 }).then((told) => told.may, () => []);
  const isTag = !reference.includes(":");
  const here = (more) => path(`r/${name}${isTag ? ":" : "@"}${reference}`, { platform: query.platform, tab: query.tab, ...more });
  const tab = TABS.some(([key]) => key === query.tab) ? query.tab : "layers";
  const kind = text(shown?.value.artifactType || top.value.artifactType) || (!config && text(shown?.value.config?.mediaType));
  const tools = [];
  if (index?.images.length > 1) {
    tools.push(select("Platform", index.images.map((one) => [one.name, one.name]), chosen.name, (platform) => { location.hash = here({ platform }); }));
  }
  if (may.includes("delete") && api.about.delete) {
    tools.push(h("button", { type: "button", class: "danger", onclick: () => removal(name, reference, top.digest) }, "Delete…"));
  }
  return {
    title: `${name}${isTag ? ":" : "@"}${isTag ? reference : short(reference)}`,
    body: [
      crumbs(name, true),
      h("div", { class: "head" }, h("h1", {}, isTag ? reference : short(reference)), h("div", { class: "row" }, tools)),
      facts([
        ["Size", shown ? bytes(sizeOf(shown)) : null],
        ["Layers", shown ? layersOf(shown).length : null],
        ["Platform", chosen?.name ?? (config ? [config.os, config.architecture, config.variant].filter(Boolean).map(text).join("/") : null)],
        ["Kind", config ? null : kind],
        ["Created", when(config?.created ?? shown?.value.annotations?.["org.opencontainers.image.created"])],
        [index ? "Index" : "Digest", digest(top.digest)],
        ["Image", index && shown ? digest(shown.digest) : null],
      ]),
      pulls(name, reference),
      h("nav", { class: "tabs", "aria-label": "Parts of the image" }, TABS.map(([key, title]) =>
        h("a", { href: here({ tab: key === "layers" ? "" : key }), "aria-current": key === tab ? "page" : null }, title))),
      await part(tab, { name, top, index, shown, config }),
    ],
  };
}

// An index may list what is not here, and a configuration may be gone or no JSON: the rest can be shown all the same.
function missing(error) {
  if (error instanceof api.Refused && error.status !== 401) return null;
  throw error;
}

function part(tab, { name, top, index, shown, config }) {
  if (tab === "attached") return attached(name, top, shown, index);
  if (tab === "manifest") return [raw(name, index ? "Index" : "Manifest", top), index && shown ? raw(name, "Image manifest", shown) : null];
  if (!shown) return state("The image is not here", "The index lists it, but this registry does not have it.");
  if (tab === "config") return settingsOf(config, shown, top);
  return history(name, shown, config);
}

function history(name, shown, config) {
  const all = steps(shown, config);
  if (!all.length) return state("No layers", null);
  const largest = Math.max(1, ...all.map((step) => step.layer?.size ?? 0));
  let number = 0;
  const rows = all.map((step) => {
    const bar = h("div", { class: "bar" });
    bar.style.width = `${(100 * (step.layer?.size ?? 0)) / largest}%`;
    const file = step.layer?.annotations?.["org.opencontainers.image.title"];
    return {
      class: step.layer ? "" : "faint",
      cells: [
        step.layer ? String(++number) : "",
        [h("code", {}, step.command || text(file) || step.comment || (config ? "–" : text(step.layer?.mediaType))), step.layer ? bar : null],
        step.layer ? bytes(step.layer.size) : "",
        step.layer ? digest(step.layer.digest) : "",
      ],
    };
  });
  return table("Layers and history, oldest first", [["", "number", ""], ["Step", "text"], ["Size", "number inline"], ["Layer", "number inline"]], rows, "cards");
}

function keyed(title, rows) {
  if (!rows.length) return null;
  return h("section", {}, h("h2", {}, title), table(title, [["Name"], ["Value", "text"]],
    rows.map(([key, value]) => [h("code", { class: "tag" }, key), value === "" ? h("span", { class: "muted" }, "empty") : value])));
}

function settingsOf(config, shown, top) {
  const rows = settings(config).map(([key, value]) => [key, h("code", {}, value)]);
  const parts = [
    rows.length ? h("section", {}, h("h2", {}, "How it runs"), table("How it runs", [["Setting", "nowrap"], ["Value", "text"]], rows)) : null,
    keyed("Environment", environment(config)),
    keyed("Labels", labels(config)),
    keyed("Annotations", pairs(shown.value.annotations)),
    top === shown ? null : keyed("Annotations of the index", pairs(top.value.annotations)),
  ];
  return parts.some(Boolean) ? parts : state(config ? "Nothing is set" : "No configuration", config ? null : "This is no container image, or its configuration cannot be read.");
}

function raw(name, title, manifest) {
  let shown = manifest.text;
  try {
    shown = JSON.stringify(JSON.parse(manifest.text), null, 2);
  } catch {
    // As it is, then.
  }
  return h("section", {}, h("h2", {}, title),
    h("div", { class: "row" }, h("span", { class: "muted" }, manifest.mediaType), copyButton(manifest.text, title),
      h("button", { type: "button", class: "copy", onclick: () => save(`${name}-${short(manifest.digest)}.json`, manifest.text) }, "Download")),
    h("pre", { tabindex: 0, "aria-label": title }, shown));
}

function removal(name, reference, digest) {
  const isTag = !reference.includes(":");
  const wrong = h("p", { class: "bad", role: "alert", hidden: true });
  const dialog = h("dialog", { "aria-labelledby": "remove-title" });
  const go = async (button, what) => {
    button.disabled = true;
    try {
      await api.remove(name, what, digest);
      dialog.close();
      say("Deleted");
      location.hash = path(`r/${name}`);
    } catch (error) {
      wrong.hidden = false;
      wrong.textContent = error.status === 412 ? "It was changed meanwhile. Look at it again first." : error.message;
      button.disabled = false;
    }
  };
  const button = (title, what) => h("button", { type: "button", class: "danger", onclick: (event) => go(event.target, what) }, title);
  append(dialog, [
    h("h3", { id: "remove-title" }, isTag ? `Delete ${name}:${reference}?` : `Delete ${name}@${short(reference)}?`),
    isTag ? h("p", {}, "The tag alone: the image stays, and so do other tags on it. Or the image with every tag on it.")
      : h("p", {}, "The image goes with every tag on it. Nobody can pull it any more."),
    h("p", { class: "muted" }, h("code", {}, digest)), wrong,
    h("div", { class: "row" }, h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel"),
      isTag ? button("Delete the tag", reference) : null, button("Delete the image", digest)),
  ]);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
