
// Puts the sections together, and again when other runs or another axis are chosen.
const data = JSON.parse(document.getElementById("data").textContent);
data.runs.forEach((run, index) => { run.index = index; run.color = `var(--c${index % 8})`; run.shown = true; });
// Two folders may bear the same name.
for (const run of data.runs) if (data.runs.some(other => other !== run && other.name === run.name)) run.label = `${run.name} (${run.index + 1})`;
for (const run of data.runs) run.name = run.label ?? run.name;

const main = document.getElementById("main");
const chosen = () => document.querySelector("#axis input:checked").value;

function render() {
  const runs = data.runs.filter(run => run.shown);
  const parts = runs.length ? [overview(runs), losses(runs, chosen()), reach(data, runs), course(runs, chosen()), gamma(runs), spectra(runs), kernels(runs),
    configuration(runs)] : [element("p", {}, "No run is chosen.")];
  main.replaceChildren(...parts.filter(Boolean));
}

document.title = data.runs.map(run => run.name).join(", ") + " – training report";
document.getElementById("lead").textContent = `Written by ${data.program}. Point at a curve for its values, or move to it with the Tab key and along it `
  + "with the arrow keys.";
for (const run of data.runs) {
  const box = element("input", { type: "checkbox" });
  box.checked = true;
  box.addEventListener("change", () => { run.shown = box.checked; render(); });
  const swatch = element("i", { class: "swatch" });
  swatch.style.borderColor = run.color;
  document.getElementById("runs").append(element("label", {}, box, swatch, run.name));
}
document.getElementById("axis").addEventListener("change", render);
render();
