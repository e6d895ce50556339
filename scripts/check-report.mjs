#!/usr/bin/env node
// Opens a page written by `llama_pc report` in headless Chromium, at several widths, light and dark: it must make no network request,
// log no error, not overflow its width, and show a curve's values by mouse and keyboard. Saves a screenshot of each and a PDF.
//   scripts/check-report.mjs PAGE.html FOLDER        needs Node and Chromium (CHROMIUM overrides the binary `chromium`)
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [page, out] = process.argv.slice(2);
if (!page || !out) {
  console.error("usage: scripts/check-report.mjs PAGE.html FOLDER");
  process.exit(2);
}
mkdirSync(out, { recursive: true });
const profile = mkdtempSync(join(tmpdir(), "check-report-"));
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", `--user-data-dir=${profile}`, "--remote-debugging-pipe", "about:blank"];
const chromium = spawn(process.env.CHROMIUM ?? "chromium", flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
chromium.on("error", error => { console.error(`cannot start Chromium: ${error.message}`); process.exit(1); });

// The DevTools protocol over pipes: JSON messages terminated by a zero byte.
let next = 1, buffered = "", session;
const waiting = new Map(), listeners = new Map(), problems = [];
chromium.stdio[4].on("data", bytes => {
  const parts = (buffered + bytes).split("\0");
  buffered = parts.pop();
  for (const message of parts.map(part => JSON.parse(part))) {
    if (message.id) {
      const { accept, refuse } = waiting.get(message.id);
      waiting.delete(message.id);
      message.error ? refuse(new Error(message.error.message)) : accept(message.result);
    } else listeners.get(message.method)?.(message.params);
  }
});
const send = (method, params = {}) => new Promise((accept, refuse) => {
  waiting.set(next, { accept, refuse });
  chromium.stdio[3].write(JSON.stringify({ id: next++, method, params, sessionId: session }) + "\0");
});
const evaluate = async expression => {
  const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
  if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
  return result.value;
};
const expect = (condition, text) => { if (!condition) problems.push(text); };
const key = async name => {
  for (const type of ["keyDown", "keyUp"]) await send("Input.dispatchKeyEvent", { type, key: name, code: name });
};

async function look(width, height, scheme) {
  const name = `${width}-${scheme}`;
  await send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 600 });
  await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  const loaded = new Promise(accept => listeners.set("Page.loadEventFired", accept));
  await send("Page.navigate", { url: pathToFileURL(resolve(page)).href });
  await loaded;
  await evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))");
  expect(await evaluate("document.documentElement.scrollWidth <= innerWidth"), `${name}: the page is wider than its window`);
  expect(await evaluate("document.querySelectorAll('figure svg path.line').length") > 0, `${name}: no curve is drawn`);

  const box = await evaluate("(({left, top, width, height}) => ({left, top, width, height}))(document.querySelector('figure svg').getBoundingClientRect())");
  const bottom = Math.min(box.top + box.height / 2, height - 5);
  await send("Input.dispatchMouseEvent", { type: "mouseMoved", x: box.left + box.width / 2, y: bottom });
  expect(await evaluate("document.querySelector('.readout').textContent.length") > 5, `${name}: the pointer tells no value`);
  await send("Input.dispatchMouseEvent", { type: "mouseMoved", x: 0, y: 0 });

  // With the Tab key only.
  await evaluate("document.activeElement.blur()");
  let reached = false;
  for (let tries = 0; tries < 40 && !reached; tries++) {
    await key("Tab");
    reached = await evaluate("document.activeElement?.getAttribute('role') === 'slider'");
  }
  expect(reached, `${name}: the Tab key reaches no curve`);
  if (reached) {
    const value = () => evaluate("document.activeElement.getAttribute('aria-valuetext')");
    const end = await value();
    await key("Home");
    const start = await value();
    expect(start && end && start !== end, `${name}: the keys move no cursor (${start}; ${end})`);
    expect(await evaluate("document.activeElement.closest('figure').querySelector('.readout').textContent.length") > 5, `${name}: the focus tells no value`);
    await evaluate("document.activeElement.blur()");
  }
  for (const axis of ["step", "seconds", "tokens"]) {
    await evaluate(`document.querySelector('#axis input[value=${axis}]').click()`);
    await evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))");
    expect(await evaluate("document.querySelectorAll('figure svg path.line').length") > 0, `${name}: no curve over ${axis}`);
  }
  await evaluate("scrollTo(0, 0)");
  const { data } = await send("Page.captureScreenshot", { format: "png", captureBeyondViewport: true });
  writeFileSync(join(out, `${name}.png`), Buffer.from(data, "base64"));
}

try {
  const { targetInfos } = await send("Target.getTargets");
  const target = targetInfos.find(info => info.type === "page");
  session = (await send("Target.attachToTarget", { targetId: target.targetId, flatten: true })).sessionId;
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(`${domain}.enable`);
  listeners.set("Runtime.exceptionThrown", event => problems.push(`error: ${event.exceptionDetails.exception?.description}`));
  listeners.set("Log.entryAdded", event => event.entry.level === "error" && problems.push(`log: ${event.entry.text}`));
  listeners.set("Network.requestWillBeSent", event =>
    /^(file|data):/.test(event.request.url) || problems.push(`the page asks for ${event.request.url}`));
  for (const scheme of ["light", "dark"]) for (const [width, height] of [[390, 844], [768, 1024], [1280, 900]]) await look(width, height, scheme);
  const { data } = await send("Page.printToPDF", { printBackground: true });
  writeFileSync(join(out, "print.pdf"), Buffer.from(data, "base64"));
} catch (error) {
  problems.push(String(error));
} finally {
  chromium.kill();
  await new Promise(accept => chromium.once("exit", accept));
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}
problems.forEach(problem => console.error(problem));
console.log(problems.length ? `${problems.length} problems` : `the page is fine; pictures in ${out}`);
process.exit(problems.length ? 1 : 0);
