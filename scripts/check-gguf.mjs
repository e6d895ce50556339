#!/usr/bin/env node
// Loads the output of `llama_pc export --format gguf` with llama.cpp and compares its top-1 tokens with those that
// scripts/check-export.py saved for the same model in transformers: at least 95 % must agree. Uses the first 8 windows.
//   scripts/check-gguf.mjs FILE.gguf PREDICTIONS.json
// Needs node-llama-cpp, resolvable from this script or from the current folder.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [file, predictions] = process.argv.slice(2);
if (!file || !predictions) {
  console.error("usage: scripts/check-gguf.mjs FILE.gguf PREDICTIONS.json");
  process.exit(2);
}
const entry = createRequire(join(process.cwd(), "from-here")).resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry).href);
const windows = JSON.parse(readFileSync(predictions)).slice(0, 8);
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: windows[0].tokens.length });
const sequence = context.getSequence();
let same = 0, total = 0;
for (const { tokens, likeliest } of windows) {
  await sequence.clearHistory();
  const found = await sequence.controlledEvaluate(tokens.map(token => [token, { generateNext: { token: true } }]));
  found.forEach((one, at) => {
    if (one?.next?.token === undefined) return;
    total += 1;
    same += one.next.token === likeliest[at];
  });
}
console.log(`llama.cpp: the same likeliest token at ${same} of ${total} positions`);
process.exit(total > 0 && same >= 0.95 * total ? 0 : 1);
