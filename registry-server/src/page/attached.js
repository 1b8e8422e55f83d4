// What refers to an image: lists of packages, signatures, provenance, anything. Known kinds are shown so that they can be read.

import * as api from "./api.js";
import { bytes, digest, facts, filter, h, number, plural, replace, save, short, state, table, when } from "./dom.js";
import { layersOf, list, pairs, text } from "./read.js";

// Rows that are shown before somebody asks for more.
const ROWS = 100;

export async function attached(name, top, shown, index) {
  const subjects = [[top.digest, index ? "the index" : ""]];
  if (shown && shown !== top) subjects.push([shown.digest, "this platform's image"]);
  const parts = [];
  let found = 0;
  for (const [subject, about] of subjects) {
    const page = await api.referrers(name, subject);
    found += page.found.length;
    const box = h("div", {});
    const add = (page) => {
      box.append(...page.found.map((one) => card(name, one, about)));
      if (!page.next) return;
      const more = h("button", { type: "button", onclick: async () => {
        const next = await api.referrers(name, subject, page.next);
        more.remove();
        add(next);
      } }, "Show more");
      box.append(h("p", {}, more));
    };
    add(page);
    parts.push(box);
  }
  // BuildKit keeps them in the index.
  const within = (index?.attestations ?? []).filter((one) => one.about === shown?.digest);
  found += within.length;
  parts.push(h("div", {}, within.map((one) => card(name, { ...one, artifactType: "attestation manifest" }, "in the index"))));
  return found ? parts : state("Nothing is attached", "Signatures, lists of packages and provenance appear here once they are pushed.");
}

function card(name, descriptor, about) {
  const body = h("div", {});
  const kind = text(descriptor.artifactType) || text(descriptor.mediaType) || "something";
  const button = h("button", { type: "button", "aria-expanded": "false", onclick: async () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? "Show" : "Hide";
    if (open) return replace(body);
    replace(body, h("p", { class: "muted loading" }, "Loading…"));
    replace(body, await documents(name, descriptor).catch(told));
  } }, "Show");
  const annotations = pairs(descriptor.annotations).filter(([key]) => key !== "org.opencontainers.image.created" && !key.startsWith("vnd.docker.reference."));
  return h("section", { class: "card", "aria-label": kind },
    h("header", {}, h("div", {}, h("h3", {}, kind), about ? h("p", { class: "muted" }, "About ", about) : null),
      h("div", { class: "row" }, h("span", { class: "muted" }, when(descriptor.annotations?.["org.opencontainers.image.created"])), digest(descriptor.digest), button)),
    annotations.length ? h("dl", { class: "facts-row" }, annotations.slice(0, 20).map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value)))) : null,
    body);
}

function told(error) {
  if (!(error instanceof api.Refused)) throw error;
  return h("p", { class: "bad" }, error.message);
}

async function documents(name, descriptor) {
  const manifest = await api.manifest(name, descriptor.digest);
  const layers = layersOf(manifest);
  if (!layers.length) return h("p", { class: "muted" }, "It has no content but its annotations.");
  return Promise.all(layers.slice(0, 10).map((layer) => one(name, layer).catch(told)));
}

async function one(name, layer) {
  const title = layer.annotations?.["org.opencontainers.image.title"] ?? layer.annotations?.["in-toto.io/predicate-type"] ?? layer.mediaType;
  const file = `${name}-${short(layer.digest)}.json`;
  const loaded = async () => api.blob(name, layer, api.DOCUMENT);
  const download = h("button", { type: "button", class: "copy", onclick: async () => {
    try {
      save(file, await loaded(), layer.mediaType);
    } catch (error) {
      download.after(told(error));
    }
  } }, `Download ${bytes(layer.size)}`);
  const heading = h("h2", { class: "row" }, text(title), download);
  const signature = pairs(layer.annotations).filter(([key]) => /signature|certificate|bundle|chain/.test(key));
  if (!/json|dsse|spdx|cyclonedx|in-toto/.test(layer.mediaType) || layer.size > api.DOCUMENT) {
    return [heading, signed(signature)];
  }
  const source = await loaded();
  let value;
  try {
    value = JSON.parse(source);
  } catch {
    return [heading, h("pre", { tabindex: 0 }, source.slice(0, 20_000))];
  }
  return [heading, readable(value), signed(signature)];
}

function signed(pairs) {
  return pairs.length ? table("Signature", [["Name"], ["Value", "text"]], pairs.map(([key, value]) => [h("code", {}, key), h("code", {}, value)])) : null;
}

// A document of a known kind in words and tables, any other as it is.
function readable(value, depth = 0) {
  const envelope = value?.dsseEnvelope ?? value;
  if (typeof envelope?.payload === "string" && envelope.payloadType && depth < 3) {
    const inner = unwrapped(envelope.payload);
    const keys = list(envelope.signatures).map((one) => text(one.keyid)).filter(Boolean);
    const how = `Signed ${plural(list(envelope.signatures).length, "time")}${keys.length ? ` by ${keys.join(", ")}` : ""}. This page does not check signatures.`;
    return [h("p", { class: "note" }, how), inner === null ? plain(value) : readable(inner, depth + 1)];
  }
  if (value?.predicateType) return statement(value, depth);
  if (value?.spdxVersion) return spdx(value);
  if (value?.bomFormat === "CycloneDX") return cyclonedx(value);
  return plain(value);
}

function unwrapped(payload) {
  try {
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(payload), (c) => c.charCodeAt(0))));
  } catch {
    return null;
  }
}

function plain(value) {
  const shown = JSON.stringify(value, null, 2);
  return h("pre", { tabindex: 0, "aria-label": "The document" }, shown.length > 200_000 ? `${shown.slice(0, 200_000)}\n…` : shown);
}

function statement(value, depth) {
  const about = list(value.subject).map((one) => text(one.name) || pairs(one.digest).map((pair) => pair.join(":"))[0]).filter(Boolean);
  const predicate = value.predicate ?? {};
  const head = facts([["Says", text(value.predicateType)], ["About", about.slice(0, 5).join(", ")]]);
  if (predicate.spdxVersion || predicate.bomFormat) return [head, readable(predicate, depth + 1)];
  const build = predicate.buildDefinition ?? {};
  const run = predicate.runDetails ?? {};
  const materials = [...list(predicate.materials), ...list(build.resolvedDependencies)];
  if (!/provenance/.test(text(value.predicateType))) return [head, plain(predicate)];
  return [
    head,
    facts([
      ["Builder", text(predicate.builder?.id ?? run.builder?.id)],
      ["Kind of build", text(predicate.buildType ?? build.buildType)],
      ["Source", text(predicate.invocation?.configSource?.uri ?? build.externalParameters?.configSource?.uri)],
      ["Started", when(predicate.metadata?.buildStartedOn ?? run.metadata?.startedOn)],
      ["Finished", when(predicate.metadata?.buildFinishedOn ?? run.metadata?.finishedOn)],
    ]),
    materials.length ? rows("Made from", [["What", "text"], ["Digest", "text"]], materials,
      (one) => [text(one.uri ?? one.name), h("code", {}, pairs(one.digest).map((pair) => pair.join(":")).join(" "))]) : null,
    h("details", {}, h("summary", {}, "All of it"), plain(predicate)),
  ];
}

function spdx(value) {
  const of = (one) => [text(one.name), text(one.versionInfo), known(one.licenseConcluded) || known(one.licenseDeclared)];
  return [facts([["Format", text(value.spdxVersion)], ["Name", text(value.name)], ["Created", when(value.creationInfo?.created)]]), packages(list(value.packages), of)];
}

const known = (license) => (["NOASSERTION", "NONE", undefined, null].includes(license) ? "" : text(license));

function cyclonedx(value) {
  const license = (one) => list(one.licenses).map((one) => text(one.license?.id ?? one.license?.name ?? one.expression)).join(", ");
  const of = (one) => [text(one.name), text(one.version), license(one)];
  return [facts([["Format", `CycloneDX ${text(value.specVersion)}`], ["Created", when(value.metadata?.timestamp)]]), packages(list(value.components), of)];
}

const packages = (all, of) => rows("Packages", [["Package", "text"], ["Version", "text"], ["Licence", "text"]], all, of);

// A table of as many rows as are asked for, with a filter.
function rows(title, columns, all, of) {
  const body = h("div", {});
  const show = (words, most) => {
    const wanted = words.toLowerCase();
    const found = all.map(of).filter((row) => row.some((cell) => (cell.textContent ?? cell).toLowerCase().includes(wanted)));
    replace(body, table(title, columns, found.slice(0, most)),
      found.length > most ? h("p", {}, h("button", { type: "button", onclick: () => show(words, most * 10) }, `Show more of ${number(found.length)}`)) : null);
  };
  const search = all.length > 10 ? h("div", { class: "grow" }, filter(`Filter ${title.toLowerCase()}`, "", (words) => show(words, ROWS))) : null;
  show("", ROWS);
  return h("section", {}, h("div", { class: "tools" }, h("h3", {}, `${title} (${number(all.length)})`), search), body);
}
