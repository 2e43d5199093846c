// Makes dist/ and LICENSE from the one source of the client: the ES modules as they are, CommonJS beside them, and the
// types of both.

import { build } from "esbuild";
import { cpSync, readdirSync, rmSync } from "node:fs";

const CLIENT = "../signaling/browser/client";

rmSync("dist", { recursive: true, force: true });
cpSync("../LICENSE", "LICENSE");
for (const folder of [CLIENT, "src"]) {
  for (const file of readdirSync(folder)) {
    cpSync(`${folder}/${file}`, `dist/${file}`);
    if (file.endsWith(".d.ts")) cpSync(`${folder}/${file}`, `dist/${file.replace(/ts$/, "cts")}`);
  }
}
await build({
  entryPoints: ["dist/signaling.js", "dist/react.js"],
  outdir: "dist",
  outExtension: { ".js": ".cjs" },
  format: "cjs",
  platform: "neutral",
  target: "es2022",
  // What signaling.js imports is a part of signaling.cjs, so that nothing has to load an ES module.
  bundle: true,
  packages: "external",
});
