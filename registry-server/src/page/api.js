// The registry's endpoints. Credentials are kept for as long as the tab is open, and sent by nothing but this file.

const STORED = "longshore-registry";

// Largest answers that are read, in bytes: manifests, configurations, documents that are attached.
export const MANIFEST = 4 << 20;
export const CONFIG = 8 << 20;
export const DOCUMENT = 32 << 20;

const MANIFESTS = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
  "application/vnd.docker.distribution.manifest.v2+json",
  "application/vnd.oci.artifact.manifest.v1+json",
  "*/*",
].join(", ");

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export let about = null;
let signal;

// What was asked for before and has not come is not wanted any more.
export function begin() {
  signal?.abort();
  signal = new AbortController();
  return signal.signal;
}

function stored() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null;
  }
}

let authorization = stored();

function keep(value) {
  authorization = value;
  try {
    if (value) sessionStorage.setItem(STORED, value);
    else sessionStorage.removeItem(STORED);
  } catch {
    // Then it is known until the page is loaded again.
  }
}

async function refusal(response) {
  let first;
  try {
    first = JSON.parse(await read(response, 1 << 16)).errors?.[0];
  } catch {
    // Something before the registry answered.
  }
  const detail = typeof first?.detail === "string" ? first.detail : "";
  const message = [first?.message, detail].filter(Boolean).join(": ") || response.statusText || "the registry gives no reason";
  return new Refused(response.status, first?.code ?? "", message);
}

export async function request(path, options = {}) {
  const headers = { ...options.headers };
  const as = options.authorization ?? authorization;
  if (as) headers.Authorization = as;
  let response;
  try {
    response = await fetch(path, {
      method: options.method ?? "GET",
      headers,
      signal: signal?.signal,
      // With a browser's own credentials it would ask for a password itself. Certificates are among them.
      credentials: !as && (!about || about.via === "certificate") ? "same-origin" : "omit",
      redirect: "follow",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "", "the registry cannot be reached");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

// The body as text, unless it is longer than `most` bytes.
async function read(response, most) {
  const parts = [];
  let length = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > most) {
      await reader.cancel();
      throw new Refused(0, "", `this is larger than ${most >> 20} MiB, more than this page reads`);
    }
    parts.push(value);
  }
  return new Blob(parts).text();
}

export async function json(path, most = MANIFEST) {
  const response = await request(path, { headers: { Accept: "application/json" } });
  const text = await read(response, most);
  return parse(text);
}

export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Refused(0, "", "this is no JSON");
  }
}

export async function hello(as) {
  const response = await request("/v2/_longshore/about", { authorization: as });
  about = parse(await read(response, MANIFEST));
  return about;
}

export async function login(user, password) {
  const raw = new TextEncoder().encode(`${user}:${password}`);
  const as = `Basic ${btoa(String.fromCharCode(...raw))}`;
  await hello(as);
  keep(as);
}

export function logout() {
  keep(null);
}

export const isKnown = () => Boolean(authorization);

const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== undefined)).toString();

export const search = (values) => json(`/v2/_longshore/search?${query(values)}`);
export const tags = (name, values) => json(`/v2/${name}/_longshore/tags?${query(values)}`);

// A manifest or index: its text, what it says, its digest and type.
export async function manifest(name, reference) {
  const response = await request(`/v2/${name}/manifests/${reference}`, { headers: { Accept: MANIFESTS } });
  const text = await read(response, MANIFEST);
  return {
    text,
    value: parse(text),
    digest: response.headers.get("Docker-Content-Digest") ?? reference,
    mediaType: (response.headers.get("Content-Type") ?? "").split(";")[0],
  };
}

export async function blob(name, descriptor, most) {
  if (typeof descriptor.data === "string" && descriptor.data.length < most) {
    try {
      return new TextDecoder().decode(Uint8Array.from(atob(descriptor.data), (c) => c.charCodeAt(0)));
    } catch {
      // Then the blob itself will tell.
    }
  }
  if (descriptor.size > most) throw new Refused(0, "", `this is larger than ${most >> 20} MiB, more than this page reads`);
  return read(await request(`/v2/${name}/blobs/${descriptor.digest}`), most);
}

// One page of what refers to a digest, and where the next one is.
export async function referrers(name, digest, next) {
  const response = await request(next ?? `/v2/${name}/referrers/${digest}`);
  const link = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("Link") ?? "")?.[1];
  const found = parse(await read(response, 2 * MANIFEST)).manifests ?? [];
  // Only this registry is asked, whatever it says.
  return { found, next: link?.startsWith(`/v2/${name}/referrers/`) ? link : null };
}

export async function remove(name, reference, digest) {
  await request(`/v2/${name}/manifests/${reference}`, { method: "DELETE", headers: { "If-Match": `"${digest}"` } });
}
