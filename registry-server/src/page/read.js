// What manifests and configurations say, made even: OCI's and Docker's, old and odd ones.

import * as api from "./api.js";

const INDEXES = ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const CONFIGS = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

export const list = (value) => (Array.isArray(value) ? value.filter((one) => one !== null && typeof one === "object") : []);
export const strings = (value) => (Array.isArray(value) ? value.filter((one) => typeof one === "string") : []);
export const pairs = (value) => (value && typeof value === "object" && !Array.isArray(value)
  ? Object.entries(value).map(([key, one]) => [key, typeof one === "string" ? one : JSON.stringify(one)])
  : []);
export const text = (value) => (typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value));
const count = (value) => (typeof value === "number" && value >= 0 ? value : 0);

export const isIndex = (manifest) => INDEXES.includes(manifest.mediaType) || (Array.isArray(manifest.value.manifests) && !manifest.value.config);

export function platform(shape) {
  const parts = [shape?.os, shape?.architecture, shape?.variant].filter((part) => typeof part === "string" && part && part !== "unknown");
  return parts.length < 2 ? "" : parts.join("/");
}

// The images of an index, and what is about them in it (attestations).
export function entries(manifest) {
  const all = list(manifest.value.manifests).filter((one) => typeof one.digest === "string");
  const about = (one) => one.annotations?.["vnd.docker.reference.digest"];
  return {
    images: all.filter((one) => !about(one)).map((one) => ({ ...one, name: platform(one.platform) || one.artifactType || one.digest.slice(0, 19) })),
    attestations: all.filter((one) => about(one)).map((one) => ({ ...one, about: about(one) })),
  };
}

export const sizeOf = (manifest) => [manifest.value.config, ...list(manifest.value.layers)].reduce((sum, part) => sum + count(part?.size), 0);
export const layersOf = (manifest) => list(manifest.value.layers).map((layer) => ({ ...layer, size: count(layer.size), digest: text(layer.digest) }));

// The configuration of an image; `null` of what is none.
export async function configOf(name, manifest) {
  const descriptor = manifest.value.config;
  if (!descriptor || !CONFIGS.includes(descriptor.mediaType)) return null;
  const value = api.parse(await api.blob(name, descriptor, api.CONFIG));
  return value && typeof value === "object" ? value : null;
}

// Steps, each with the layer that it made, oldest first. Layers that no step tells of are at the end.
export function steps(manifest, config) {
  const layers = layersOf(manifest);
  const told = list(config?.history);
  const made = told.filter((step) => !step.empty_layer).length;
  if (made !== layers.length) return layers.map((layer) => ({ layer, command: "", created: null }));
  let next = 0;
  return told.map((step) => ({
    command: command(text(step.created_by)),
    comment: text(step.comment),
    created: step.created,
    layer: step.empty_layer ? null : layers[next++],
  }));
}

// A command as its Dockerfile has it, as far as the words around it are known.
export function command(text) {
  return text
    .replace(/^\/bin\/sh -c #\(nop\)\s+/, "")
    .replace(/^(RUN )?(\|\d+ (?:\S+=\S* )*)?\/bin\/sh -c /, "RUN ")
    .replace(/\s+# buildkit$/, "")
    .trim();
}

export const words = (value) => strings(value).map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : JSON.stringify(word))).join(" ");

// What containers of an image get, as names and texts.
export function settings(config) {
  const run = config?.config ?? {};
  const health = strings(run.Healthcheck?.Test);
  return [
    ["Entrypoint", words(run.Entrypoint)],
    ["Command", words(run.Cmd)],
    ["Working directory", text(run.WorkingDir)],
    ["User", text(run.User)],
    ["Ports", pairs(run.ExposedPorts).map(([key]) => key).join(", ")],
    ["Volumes", pairs(run.Volumes).map(([key]) => key).join(", ")],
    ["Stop signal", text(run.StopSignal)],
    ["Shell", words(run.Shell)],
    ["Health check", health.join(" ")],
    ["On build", strings(run.OnBuild).join("\n")],
    ["Author", text(config?.author)],
  ].filter(([, value]) => value);
}

export function environment(config) {
  return strings(config?.config?.Env).map((line) => {
    const at = line.indexOf("=");
    return at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1)];
  });
}

export const labels = (config) => pairs(config?.config?.Labels);
