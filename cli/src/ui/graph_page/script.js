// The steps that the one below the pointer needs stay bright; two buttons; what ran is in view.
"use strict";
const svg = document.querySelector("svg");
const steps = new Map();
for (const step of document.querySelectorAll(".step")) steps.set(step.dataset.step, step);
function needed(step, found) {
  if (!step || found.has(step.dataset.step)) return found;
  found.add(step.dataset.step);
  for (const input of step.dataset.inputs.split(" ")) needed(steps.get(input), found);
  return found;
}
function trace(step) {
  const found = needed(step, new Set());
  svg.classList.toggle("traced", found.size > 0);
  for (const [number, other] of steps) other.classList.toggle("trace", found.has(number));
  for (const edge of svg.querySelectorAll(".edge"))
    edge.classList.toggle("trace", found.has(edge.dataset.from) && found.has(edge.dataset.to));
}
for (const step of steps.values()) {
  for (const kind of ["mouseenter", "focus"]) step.addEventListener(kind, () => trace(step));
  for (const kind of ["mouseleave", "blur"]) step.addEventListener(kind, () => trace(null));
}
function toggle(button, target, name) {
  if (!button || !target) return;
  button.hidden = false;
  button.addEventListener("click", () => button.setAttribute("aria-pressed", target.classList.toggle(name)));
}
const canvas = document.querySelector("#canvas");
toggle(document.querySelector("#fit"), canvas, "fit");
toggle(document.querySelector("#brief"), document.querySelector("#steps"), "brief");
const first = document.querySelector(".step.failed, .step.path");
if (first) {
  const box = first.getBoundingClientRect(), view = canvas.getBoundingClientRect();
  canvas.scrollLeft = box.left - view.left - (view.width - box.width) / 2;
  canvas.scrollTop = box.top - view.top - view.height / 3;
}
document.body.dataset.steps = steps.size;
