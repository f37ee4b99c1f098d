"use strict";

// Light and dark: as the system has it, until the switch says otherwise.
const root = document.documentElement;
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
function nameSwitch() {
  const other = isDark() ? "light" : "dark";
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to ${other} colours`);
}
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  document.querySelector("meta[name=color-scheme]").content = root.dataset.theme;
  nameSwitch();
});
system.addEventListener("change", nameSwitch);
theme.hidden = false;
nameSwitch();

// Numbers: of the mark under the pointer, or the nearest one; and of the one that the keyboard is on.
const REACH = 48; // pixels
const tip = document.getElementById("tip");
let shown = null;
function show(mark) {
  if (shown) shown.classList.remove("on");
  shown = mark;
  tip.hidden = !mark;
  if (!mark) return;
  mark.classList.add("on");
  tip.textContent = mark.getAttribute("aria-label");
  const box = mark.getBoundingClientRect();
  const left = box.left + Math.min(box.width, 2 * REACH) / 2 - tip.offsetWidth / 2;
  const isBelow = box.top < tip.offsetHeight + 12;
  tip.style.left = `${Math.max(8, Math.min(left, root.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${isBelow ? box.bottom + 8 : box.top - tip.offsetHeight - 8}px`;
}
function nearest(chart, x, y) {
  let best = null, least = REACH;
  for (const mark of chart.querySelectorAll(".mark")) {
    const box = mark.getBoundingClientRect();
    const away = Math.hypot(box.left + box.width / 2 - x, box.top + box.height / 2 - y);
    if (away < least) [best, least] = [mark, away];
  }
  return best;
}
function serve(chart) {
  const marks = [...chart.querySelectorAll(".mark")];
  const isBars = chart.classList.contains("bars");
  const point = (event) =>
    show(event.target.closest(".mark") || (isBars ? null : nearest(chart, event.clientX, event.clientY)));
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") show(null); });
  chart.addEventListener("focusin", (event) => show(event.target));
  chart.addEventListener("focusout", () => show(null));
  chart.addEventListener("keydown", (event) => {
    const at = marks.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: marks.length - 1 };
    const to = marks[next[event.key]];
    if (at < 0 || !to) return;
    event.preventDefault();
    marks[at].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
}
document.querySelectorAll("svg.chart").forEach(serve);
addEventListener("keydown", (event) => { if (event.key === "Escape") show(null); });
addEventListener("pointerdown", (event) => { if (!event.target.closest?.("svg.chart")) show(null); });
addEventListener("scroll", () => show(shown?.matches(":focus") ? shown : null), { passive: true });

// Tables that are wider than the page: a shade where more lies, and the keyboard can scroll them.
for (const table of document.querySelectorAll(".scroll")) {
  const look = () => {
    table.classList.toggle("more", table.scrollLeft + table.clientWidth < table.scrollWidth - 1);
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
    else table.removeAttribute("tabindex");
  };
  table.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(table);
}

// Downloads: a record as it is, or its values as a table.
function csv(rows) {
  const quoted = (value) => {
    const text = String(value ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(quoted).join(",") + "\r\n").join("");
}
function ofRun(record) {
  const columns = Object.keys(record.step_table), steps = record.step_table.step;
  const metrics = [...new Set(record.evaluations.flatMap((each) => Object.keys(each.means)))];
  const told = (each) => [...metrics.map((metric) => each.means[metric]), each.is_best, each.duration_s];
  const found = new Map(record.evaluations.map((each) => [each.step - 1, told(each)]));
  const rows = steps.map((step, row) => [
    ...columns.map((column) => record.step_table[column][row]),
    ...(found.get(step) || told({ means: {} })),
  ]);
  const done = new Set(steps); // what was evaluated before a resume belongs to no step of this session
  const earlier = [...found].filter(([step]) => !done.has(step));
  const head = [...columns, ...[...metrics, "is_best", "duration_s"].map((name) => `evaluation ${name}`)];
  return csv([
    head,
    ...earlier.map(([step, values]) => [...columns.map((column) => (column === "step" ? step : null)), ...values]),
    ...rows,
  ]);
}
function ofStudy(record) {
  const all = Object.values(record.slots).flat();
  const most = Math.max(0, ...all.map((slot) => slot.phases.length));
  const groups = Object.keys(all.length ? all[0].phases[0] : {});
  const workers = Array.from({ length: most }, (_, worker) => worker);
  const head = ["axis", "program", "round", "step", "duration_s", "slot_step_s", "others_frac"];
  head.push(...workers.flatMap((worker) => groups.map((group) => `worker ${worker} ${group}_s`)));
  const rows = [head];
  for (const [key, slots] of Object.entries(record.slots)) {
    const [axis, program] = key.split(/\/(.*)/s);
    for (const slot of slots) {
      const phases = workers.flatMap((worker) => groups.map((group) => (slot.phases[worker] || {})[group]));
      (slot.steps_s || [slot.step_s]).forEach((seconds, step) =>
        rows.push([axis, program, slot.round, step, seconds, slot.step_s, slot.others_frac, ...(step ? [] : phases)]));
    }
  }
  return csv(rows);
}
function ofSweep(record) {
  const head = ["optimizer", "batch", "stage", "trial", "steps", "seed", "reached_step", "best", "failure", "num_steps", "num_samples", "step_s", "wall_s"];
  return csv([head, ...record.runs.map((run) => head.map((name) => run[name]))]);
}
const tables = { run: ofRun, study: ofStudy, sweep: ofSweep };
function save(text, kind, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
for (const button of document.querySelectorAll("button[data-raw]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const source = document.getElementById(button.dataset.raw);
    const name = `${button.dataset.file}.${button.dataset.as}`;
    if (button.dataset.as === "json") save(source.textContent, "application/json", name);
    else save(tables[source.dataset.kind](JSON.parse(source.textContent)), "text/csv", name);
  });
}

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
