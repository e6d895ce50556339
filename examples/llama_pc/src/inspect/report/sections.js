
// The sections of the page, each from the data and what is chosen at its top: the runs that are shown, and the axis.
const KINDS = ["q", "k", "v", "o", "gate", "up", "down"];
const AXES = { tokens: ["tokens", short], step: ["step", short], seconds: ["time", duration] };

function section(title, note) {
  const made = element("section");
  made.append(element("h2", {}, title));
  if (note) made.append(element("p", { class: "note" }, note));
  return made;
}

function table(caption, heads, rows) {
  const kind = cell => cell instanceof Node || (typeof cell === "string" && /[a-z"]/i.test(cell)) ? { class: "text" } : {};
  const head = element("tr", {}, ...heads.map((text, at) => element("th", { scope: "col", ...kind(rows[0]?.[at]) }, text)));
  const body = rows.map(row => element("tr", {}, ...row.map((cell, at) => {
    const made = at === 0 ? element("th", { scope: "row" }) : element("td", kind(cell));
    made.append(cell instanceof Node ? cell : String(cell ?? "–"));
    return made;
  })));
  const made = element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption }, made);
}

const last = list => list[list.length - 1];
const whole = value => Math.round(value).toLocaleString("en");

function overview(runs) {
  const made = section("At a glance");
  const rows = runs.map(run => {
    const end = last(run.train), validation = last(run.validation);
    const best = run.validation.length ? Math.min(...run.validation.map(point => point.val_loss)) : null;
    const middle = [...run.train].map(point => point.tokens_per_second).sort((a, b) => a - b)[run.train.length >> 1];
    return [run.name, end && whole(end.step), end && whole(end.tokens), run.smoothed.length ? last(run.smoothed).toFixed(4) : null,
      validation && validation.val_loss.toFixed(4), best === null ? null : best.toFixed(4), middle === undefined ? null : whole(middle),
      end && duration(end.seconds), `${whole(run.peak_memory_bytes / 2 ** 20)} MiB`, run.config["optimizer.kind"]?.replaceAll('"', ""),
      "pc.targets" in run.config ? (run.config["pc.level"] ? "level " + run.config["pc.level"] : "own polynomial") : "none"];
  });
  made.append(table("Losses in nats per token; the training loss is smoothed, the speed is the median.",
    ["run", "steps", "tokens", "training loss", "validation", "best", "tokens/s", "time", "memory", "optimizer", "PC"], rows));
  const several = runs.filter(run => run.ranks).map(run => [run.name, whole(run.ranks.count), `${(run.ranks.bytes_per_step / 2 ** 20).toFixed(1)} MiB`,
    `${(100 * run.ranks.share).toFixed(1)} %`, `rank ${run.ranks.slowest}`]);
  if (several.length) made.append(table("Runs on several ranks: what all of them send in a step, the share of the time in which a rank only exchanges and waits, and the rank for which the others wait most often.",
    ["run", "ranks", "sent per step", "exchange", "slowest"], several));
  return made;
}

function losses(runs, axis) {
  const made = section("Loss", "Lines are the training loss, smoothed over a fiftieth of the run, with the loss of every step faint behind "
    + "it; dots are the validation loss.");
  const [x, formatX] = AXES[axis];
  const series = runs.flatMap(run => [
    { name: run.name, color: run.color, faint: true, points: run.train.map(point => [point[axis], point.loss]) },
    { name: run.name, color: run.color, points: run.train.map((point, at) => [point[axis], run.smoothed[at]]) },
    { name: run.name + " validation", color: run.color, dots: true, dash: "2 4", points: run.validation.map(point => [point[axis], point.val_loss]) },
  ]);
  made.append(new Chart({ title: "Loss", x, y: "nats per token", formatX, height: 420, series }).figure);
  const joined = runs.filter(run => run.joined > 1);
  if (joined.length) made.append(element("p", { class: "note" }, joined.map(run => `${run.name}: means over ${run.joined} logged steps`).join("; ") + "."));
  return made;
}

function reach(data, runs) {
  if (runs.length < 2) return null;
  const made = section("Tokens to the same loss", "What the run of a row needs to reach the final loss of the run of a column, and that as a "
    + "share of what the other needed.");
  const cell = (run, other) => {
    const found = data.reach[run.index][other.index];
    if (!found) return "–";
    if (found.tokens === null || found.tokens === undefined) return "not reached";
    return `${short(found.tokens)} (${Math.round(100 * found.tokens / found.other_tokens)} %)`;
  };
  const column = other => {
    const found = data.reach.map(row => row[other.index]).find(Boolean);
    return found ? `${other.name}, ${found.loss.toFixed(4)}` : other.name;
  };
  const validated = data.reach.flat().filter(Boolean).every(found => found.is_validation);
  made.append(table(`Tokens, by the ${validated ? "validation loss" : "validation loss where both have one, else the smoothed training loss"}`,
    ["run", ...runs.map(column)], runs.map(run => [run.name, ...runs.map(other => cell(run, other))])));
  return made;
}

function course(runs, axis) {
  const made = section("Course of the training");
  const [x, formatX] = AXES[axis];
  const chart = (title, y, key, log) => new Chart({ title, x, y, log, formatX,
    series: runs.map(run => ({ name: run.name, color: run.color, points: run.train.map(point => [point[axis], point[key]]).filter(point => !log || point[1] > 0) })) }).figure;
  made.append(element("div", { class: "grid" }, chart("Learning rate", "rate", "lr"), chart("Gradient norm before clipping", "norm", "grad_norm", true),
    chart("Throughput", "tokens per second", "tokens_per_second")));
  return made;
}

function gamma(runs) {
  const with_gamma = runs.filter(run => run.gamma.length);
  if (!with_gamma.length) return null;
  const made = section("γ of the PC layers", "The learned factor of every preconditioned matrix, by its block; where γ is known after several "
    + "steps, also over the steps, a line per block.");
  const kinds = KINDS.filter(kind => with_gamma.some(run => run.gamma.some(one => one.kind === kind)));
  const blocks = kinds.map(kind => new Chart({ title: kind, x: "block", y: "γ at the end", height: 200,
    series: with_gamma.map(run => ({ name: run.name, color: run.color, dots: true,
      points: run.gamma.filter(one => one.kind === kind).map(one => [one.layer, last(one.values)]) })) }).figure);
  made.append(element("div", { class: "grid small" }, ...blocks));
  const moving = with_gamma.filter(run => run.gamma.some(one => one.steps.length > 1));
  if (moving.length) made.append(element("p"), element("div", { class: "grid small" }, ...kinds.map(kind => new Chart({ title: kind, x: "step", y: "γ", height: 200,
    series: moving.flatMap(run => run.gamma.filter(one => one.kind === kind).map(one => ({ name: `${run.name} block ${one.layer}`, color: run.color,
      points: one.steps.map((step, at) => [step, one.values[at]]) }))) }).figure)));
  return made;
}

function spectra(runs) {
  const measured = runs.filter(run => run.spectra.length), conditioned = runs.filter(run => run.condition.length);
  if (!measured.length && !conditioned.length) return null;
  const made = section("Singular values", "Quantiles of σ/σ₁ of every matrix of the newest checkpoint, a line per block: whole lines as the model "
    + "uses the matrix, dashed as it is trained, where a PC layer lies between the two. The nearer to 1, the better conditioned.");
  const panels = KINDS.filter(kind => measured.some(run => run.spectra.some(one => one.kind === kind))).map(kind => {
    const series = measured.flatMap(run => run.spectra.filter(one => one.kind === kind).flatMap(one => {
      const line = (values, name, dash) => ({ name: `${run.name} block ${one.layer}${name}`, color: run.color, dash, points: values.map((value, at) => [at / (values.length - 1), value]) });
      return one.effective ? [line(one.effective, ""), line(one.raw, " as trained", "3 3")] : [line(one.raw, "")];
    }));
    return new Chart({ title: kind, x: "quantile", y: "σ/σ₁", height: 220, domain: [0, 1], range: [0, 1], series }).figure;
  });
  made.append(element("div", { class: "grid small" }, ...panels));
  if (conditioned.length) {
    const heads = ["run", "step", "all", "PC blocks", "others", "all, as trained"];
    // JSON has no infinity.
    const number = value => value === undefined ? "–" : value === null ? "∞" : short(value);
    const rows = conditioned.flatMap(run => {
      const shown = run.condition.length > 6 ? [run.condition[0], last(run.condition)] : run.condition;
      return shown.map(at => [run.name, whole(at.step), number(at.all), number(at.pc), number(at.plain), number(at.raw)]);
    });
    made.append(element("p"), table("Geometric means of modified condition numbers (σ₁ over the mean of the smallest tenth)", heads, rows));
    if (conditioned.some(run => run.condition.length > 1)) {
      const line = (run, name, key, dash) => ({ name: run.name + name, color: run.color, dots: true, dash, points: run.condition.filter(at => at[key]).map(at => [at.step, at[key]]) });
      made.append(element("p"), new Chart({ title: "Condition numbers over the steps", x: "step", y: "geometric mean", log: true,
        series: conditioned.flatMap(run => [line(run, "", "all"), line(run, " PC blocks", "pc", "6 3"), line(run, " others", "plain", "2 3")]) }).figure);
    }
  }
  return made;
}

function kernels(runs) {
  const profiled = runs.filter(run => run.kernels.length);
  if (!profiled.length) return null;
  const made = section("Time per kernel", "Seconds on the device, as train --profile measured them.");
  for (const run of profiled) {
    const total = run.kernels.reduce((sum, one) => sum + one.seconds, 0);
    made.append(table(`${run.name}: ${total.toFixed(2)} s on the device`, ["kernel", "seconds", "share", "launches", ""], run.kernels.map(one => {
      const bar = element("i", { class: "bar" });
      bar.style.width = `${(8 * one.seconds / run.kernels[0].seconds).toFixed(2)}rem`;
      return [one.name, one.seconds.toFixed(3), (100 * one.seconds / total).toFixed(1) + "\u00a0%", whole(one.launches), bar];
    })));
  }
  return made;
}

function configuration(runs) {
  const keys = [...new Set(runs.flatMap(run => Object.keys(run.config)))].sort();
  const value = (run, key) => run.config[key] ?? "–";
  const differs = key => new Set(runs.map(run => value(run, key))).size > 1;
  const rows = list => list.map(key => [element("code", {}, key), ...runs.map(run => element("code", {}, value(run, key)))]);
  const made = section("Configuration");
  if (runs.length > 1) {
    const different = keys.filter(differs);
    made.append(different.length ? table("Keys that differ", ["key", ...runs.map(run => run.name)], rows(different)) : element("p", {}, "All keys are equal."));
  }
  made.append(element("details", {}, element("summary", {}, runs.length > 1 ? "Every key" : "All keys"), table("All keys", ["key", ...runs.map(run => run.name)], rows(keys))));
  return made;
}
