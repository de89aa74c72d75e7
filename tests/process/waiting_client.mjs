// Ollama's own JavaScript client: a streamed chat or generation, and what came of it, as one line of JSON.
// node waiting_client.mjs <folder of the package> <address> <chat|generate> <model>
import { pathToFileURL } from "node:url";

const [folder, host, call, model] = process.argv.slice(2);
const { Ollama } = await import(pathToFileURL(`${folder}/dist/index.mjs`).href);
const ollama = new Ollama({ host });
const request =
  call === "chat" ? { model, messages: [{ role: "user", content: "rain?" }] } : { model, prompt: "rain?" };
const parts = [];
let error = null;
try {
  for await (const part of await ollama[call]({ ...request, stream: true })) {
    parts.push({ text: call === "chat" ? part.message.content : part.response, done: part.done });
  }
} catch (caught) {
  error = caught.message;
}
console.log(JSON.stringify({ parts, error }));
