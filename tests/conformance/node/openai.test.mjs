// openai for Node, unchanged, against a real server with the default model.

import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const { BASE_URL, BUSY_URL, MODEL: model } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const PARIS = "The capital of France is Paris.";

test("answers: a question is answered and counted", async () => {
  const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
  assert.equal(answer.choices[0].message.content, PARIS);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer._request_id);
});

test("answers: a prompt is completed", async () => {
  const answer = await client.completions.create({ model, prompt: "One, two, three,", max_tokens: 4, temperature: 0 });
  assert.match(answer.choices[0].text, /^ four,/);
});

test("answers: the model is listed", async () => {
  const ids = [];
  for await (const each of client.models.list()) ids.push(each.id);
  assert.ok(ids.includes(model));
});

test("streams: a stream says what a whole answer says", async () => {
  const options = { stream: true, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create({ model, messages, temperature: 0, ...options });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, PARIS);
  assert.ok(usage.completion_tokens > 0);
});

test("streams: the stream helper gathers the whole answer", async () => {
  const stream = client.chat.completions.stream({ model, messages, temperature: 0 });
  assert.equal(await stream.finalContent(), PARIS);
});

test("streams: a stream can be left", async () => {
  const stream = await client.completions.create({ model, prompt: "Once", max_tokens: 2000, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.object, "text_completion");
    break;
  }
  const answer = await client.completions.create({ model, prompt: "Once", max_tokens: 1 });
  assert.ok(answer.choices[0].text);
});

test("answers: a response", async () => {
  const answer = await client.responses.create({ model, input: messages, temperature: 0 });
  assert.equal(answer.output_text, PARIS);
});

test("tools: a tool is called", async () => {
  const parameters = { type: "object", properties: { is_capital: { type: "boolean" } }, required: ["is_capital"] };
  const tools = [{ type: "function", function: { name: "look_up", parameters } }];
  const asked = { model, messages, temperature: 0, tools, tool_choice: "required", parallel_tool_calls: false };
  const answer = await client.chat.completions.create(asked);
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  assert.equal(call.function.name, "look_up");
  assert.equal(typeof JSON.parse(call.function.arguments).is_capital, "boolean");
});

test("structured: an answer is parsed by its zod schema", async () => {
  const City = z.object({ is_capital: z.boolean(), continent: z.enum(["Africa", "America", "Asia", "Europe"]) });
  const format = { response_format: zodResponseFormat(City, "city") };
  const answer = await client.chat.completions.parse({ model, messages, temperature: 0, ...format });
  assert.deepEqual(City.parse(answer.choices[0].message.parsed), answer.choices[0].message.parsed);
});

test("embeddings: vectors come in the package's own base64", async () => {
  const answer = await client.embeddings.create({ model, input: ["Paris", "Rome"], dimensions: 64 });
  assert.deepEqual(answer.data.map((each) => each.embedding.length), [64, 64]);
});

test("errors: a refusal is the package's own error", async () => {
  const refused = client.chat.completions.create({ model, messages, temperature: 3 });
  await assert.rejects(refused, (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.code, error.param], ["decimal_above_max_value", "temperature"]);
    assert.ok(error.requestID);
    return true;
  });
  await assert.rejects(client.chat.completions.create({ model: "gpt-9", messages, stream: true }), OpenAI.NotFoundError);
});

test("retries: a full server is asked again after the time it names", async () => {
  const patient = new OpenAI({ baseURL: BUSY_URL, apiKey: "none", maxRetries: 10 });
  const answer = await patient.completions.create({ model: "narrow", prompt: "Hi", max_tokens: 1 });
  assert.equal(answer.choices[0].finish_reason, "length");
});
