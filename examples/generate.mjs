// Continues a text with a glmd coordinator over stock gRPC for Node.js, printing it as it comes.
//
//   npm install @grpc/grpc-js @grpc/proto-loader
//   node examples/generate.mjs 127.0.0.1:8130 "The capital of France is"
import { fileURLToPath } from "node:url";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [target = "127.0.0.1:8130", text = "The river"] = process.argv.slice(2);
const root = fileURLToPath(new URL("../proto", import.meta.url));
const definition = protoLoader.loadSync("glmd/v1/inference.proto", {
  includeDirs: [root], longs: String, enums: String, defaults: true,
});
const { Inference } = grpc.loadPackageDefinition(definition).glmd.v1;
const client = new Inference(target, grpc.credentials.createInsecure(), {
  // A peer that falls silent is noticed within seconds; glmd allows pings from once a second on.
  "grpc.keepalive_time_ms": 10000,
  "grpc.keepalive_timeout_ms": 5000,
});

const call = client.Generate(
  { text, maxTokens: 32, sampling: { temperature: 0.7, stop: ["\n\n"] } },
  { deadline: Date.now() + 60_000 },
);
call.on("data", (message) => {
  for (const choice of message.choices) process.stdout.write(choice.text);
  if (message.usage) console.log(`\n[${message.usage.completionTokens} tokens]`);
});
call.on("error", (e) => {
  // RESOURCE_EXHAUSTED and UNAVAILABLE say in their details when to come back: docs/grpc.md
  console.error(`${grpc.status[e.code]}: ${e.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
