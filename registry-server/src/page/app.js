// Which view is shown: the part of the address behind `#` says, so that every view can be linked to.
//
//   #/?q=&sort=&from=                     repositories
//   #/r/<name>?q=&sort=&from=             tags
//   #/r/<name>:<tag>, @<digest> ?tab=     an image
//   #/compare/<name>?a=&b=&platform=      two of them

import * as api from "./api.js";
import { h, replace, say, state } from "./dom.js";
import { repositories, tags } from "./lists.js";
import { image } from "./image.js";
import { compare } from "./compare.js";

const main = document.getElementById("main");
const alert = document.getElementById("alert");
const find = document.getElementById("find");
const text = document.getElementById("find-text");

function fault(message) {
  replace(alert, h("div", { class: "bad" }, h("span", {}, `This page made a mistake: ${message}`),
    h("button", { type: "button", class: "plain", onclick: () => replace(alert) }, "Dismiss")));
}

addEventListener("error", (event) => fault(event.message || "a part of it could not be loaded"));
addEventListener("unhandledrejection", (event) => fault(event.reason?.message ?? String(event.reason)));

function route() {
  const [place, search = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const query = Object.fromEntries(new URLSearchParams(search));
  const [kind, ...rest] = decodeURIComponent(place).split("/");
  const name = rest.join("/");
  if (kind === "") return { view: repositories, query };
  if (kind === "compare" && name) return { view: compare, name, query };
  if (kind === "r" && name) {
    const found = /^([^:@]+)(?::([\w][\w.-]{0,127}))?(?:@([a-z0-9]+:[0-9a-f]+))?$/.exec(name);
    if (found?.[2] || found?.[3]) return { view: image, name: found[1], reference: found[3] ?? found[2], query };
    if (found) return { view: tags, name: found[1], query };
  }
  return null;
}

let shown = "";

async function show() {
  const wanted = api.begin();
  const to = route();
  const place = `${to?.view.name} ${to?.name} ${to?.reference}`;
  const moved = place !== shown;
  shown = place;
  if (to?.view === repositories) text.value = to.query.q ?? "";
  const loading = setTimeout(() => { if (!wanted.aborted && moved) replace(main, h("p", { class: "state loading" }, "Loading…")); }, 150);
  main.setAttribute("aria-busy", "true");
  try {
    if (!api.about) await api.hello().catch(forget);
    showWho();
    const view = to ? await to.view(to) : { title: "Not found", body: state("There is no such page", null, home()) };
    if (wanted.aborted) return;
    document.title = `${view.title} · ${location.host}`;
    keepFocus(() => replace(main, view.body));
  } catch (error) {
    if (wanted.aborted || error.name === "AbortError") return;
    failed(error);
  } finally {
    clearTimeout(loading);
    if (!wanted.aborted) {
      main.removeAttribute("aria-busy");
      if (moved) {
        scrollTo(0, 0);
        const heading = main.querySelector("h1");
        if (heading && !find.contains(document.activeElement)) {
          heading.tabIndex = -1;
          heading.focus({ preventScroll: true });
        }
        say(document.title);
      }
    }
  }
}

// What was kept is not right any more.
async function forget(error) {
  if (error.status !== 401) throw error;
  api.logout();
  await api.hello();
}

// Whoever types goes on typing after the view was made again.
function keepFocus(work) {
  const before = document.activeElement;
  const label = main.contains(before) ? before.getAttribute("aria-label") : null;
  const [start, end] = label && before.type === "search" ? [before.selectionStart, before.selectionEnd] : [];
  work();
  if (!label) return;
  const after = main.querySelector(`[aria-label="${CSS.escape(label)}"]`);
  after?.focus({ preventScroll: true });
  if (start !== undefined) after?.setSelectionRange(start, end);
}

const home = () => h("a", { class: "button", href: "#/" }, "All repositories");

function failed(error) {
  if (!(error instanceof api.Refused)) fault(error.message);
  const again = h("button", { type: "button", onclick: show }, "Try again");
  if (error.status === 401) return signIn(api.isKnown() ? "This needs another user." : "This registry wants to know who you are.");
  document.title = `Not shown · ${location.host}`;
  if (error.status === 404) return replace(main, state("Not found", "It was removed, or never there.", home()));
  if (error.status === 403) return replace(main, state("Not allowed", error.message, home()));
  if (error.status === 429) return replace(main, state("Too many requests", "The registry asks to wait a little.", again));
  replace(main, state("This cannot be shown", error.message, again));
}

function showWho() {
  const who = document.getElementById("who");
  const { user, via, login } = api.about ?? {};
  if (user) {
    replace(who, h("span", { class: "muted" }, user), via === "certificate" ? null : h("button", { type: "button", onclick: async () => {
      api.logout();
      await api.hello();
      await show();
    } }, "Sign out"));
  } else {
    replace(who, login ? h("button", { type: "button", onclick: () => signIn() }, "Sign in") : null);
  }
}

function signIn(why) {
  document.title = `Sign in · ${location.host}`;
  shown = "";
  const wrong = h("p", { class: "bad", role: "alert", hidden: true });
  const user = h("input", { type: "text", id: "user", autocomplete: "username", required: true, autocapitalize: "off", spellcheck: "false" });
  const password = h("input", { type: "password", id: "password", autocomplete: "current-password", required: true });
  const button = h("button", { class: "primary" }, "Sign in");
  const form = h("form", { class: "sign", onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await api.login(user.value, password.value);
      await show();
    } catch (error) {
      wrong.hidden = false;
      wrong.textContent = error.status === 401 ? "Name or password is wrong." : error.message;
      password.select();
    } finally {
      button.disabled = false;
    }
  } },
  h("h1", {}, "Sign in"), why ? h("p", { class: "muted" }, why) : null, wrong,
  h("label", { for: "user" }, "Name"), user, h("label", { for: "password" }, "Password or token"), password, button);
  replace(main, form);
  user.focus();
}

find.addEventListener("submit", (event) => {
  event.preventDefault();
  const q = text.value.trim();
  location.hash = q ? `#/?${new URLSearchParams({ q })}` : "#/";
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    text.focus();
  }
});
addEventListener("hashchange", show);
addEventListener("longshore:again", show);
document.getElementById("host").textContent = location.host;
show();
