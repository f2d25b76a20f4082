// node clients.cjs FOLDER URL: the clients of npm in FOLDER, completing, streaming, cancelling.
const { createRequire } = require("node:module");
const { join } = require("node:path");

const [folder, url] = process.argv.slice(2);
const load = createRequire(join(folder, "package.json"));
const HOLE = {
  prompt: "import os\n\ndef f(path):\n    for key, value in d.",
  suffix: "():\n    print(key, value)\n",
};
const LONG = { model: "demo", prompt: "x = [1, 2,", temperature: 0 };

async function joined(stream, text) {
  let all = "";
  for await (const part of stream) all += text(part);
  return all;
}

async function leave(stream, leaving) {
  try {
    for await (const _ of stream) leaving.abort();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}

async function openai() {
  const { OpenAI } = load("openai");
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
  const whole = await client.completions.create({ ...LONG, max_tokens: 12 });
  const parts = await client.completions.create({ ...LONG, max_tokens: 12, stream: true });
  const text = await joined(parts, (part) => part.choices[0].text);
  const long = { ...LONG, max_tokens: 900, ignore_eos: true, stream: true };
  const cancelled = await client.completions.create(long);
  for await (const _ of cancelled) break;
  return [whole.choices[0].text, text];
}

async function ollama() {
  const { Ollama } = load("ollama");
  const client = new Ollama({ host: url });
  const body = { model: "demo", prompt: LONG.prompt, raw: true };
  const options = { temperature: 0, num_predict: 12 };
  const whole = await client.generate({ ...body, options });
  const parts = await client.generate({ ...body, options, stream: true });
  const text = await joined(parts, (part) => part.response);
  const long = { temperature: 0, num_predict: 900, ignore_eos: true };
  const cancelled = await client.generate({ ...body, options: long, stream: true });
  await leave(cancelled, cancelled);
  return [whole.response, text];
}

async function continues() {
  const { constructLlmApi } = load("@continuedev/openai-adapters");
  const api = constructLlmApi({ provider: "openai", apiBase: `${url}/v1/`, apiKey: "none" });
  const never = new AbortController().signal;
  const body = { model: "demo", ...HOLE, max_tokens: 24, temperature: 0, stream: true };
  const text = (part) => part.choices[0].delta.content ?? "";
  const whole = await (await fetch(`${url}/infill`, {
    method: "POST",
    body: JSON.stringify({ input_prefix: HOLE.prompt, input_suffix: HOLE.suffix, n_predict: 24 }),
  })).json();
  const leaving = new AbortController();
  await leave(api.fimStream(body, leaving.signal), leaving);
  return [whole.content, await joined(api.fimStream(body, never), text)];
}

async function main() {
  const found = {};
  for (const each of [openai, ollama, continues]) found[each.name] = await each();
  console.log(JSON.stringify(found));
}
main();
