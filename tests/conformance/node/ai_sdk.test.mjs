// The Vercel AI SDK with its provider for OpenAI-compatible servers, unchanged, against a real server.

import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, generateObject, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL, BUSY_URL, MODEL } = process.env;
const settings = { name: "headrace", baseURL: BASE_URL, includeUsage: true, supportsStructuredOutputs: true };
const provider = createOpenAICompatible(settings);
const model = provider(MODEL);
const prompt = "What is the capital of France?";
const PARIS = "The capital of France is Paris.";
const City = z.object({ is_capital: z.boolean(), continent: z.enum(["Africa", "America", "Asia", "Europe"]) });

test("answers: generateText", async () => {
  const { text, finishReason, usage } = await generateText({ model, prompt, temperature: 0 });
  assert.equal(text, PARIS);
  assert.equal(finishReason, "stop");
  assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
});

test("answers: generateText with a prompt to complete", async () => {
  const { text } = await generateText({
    model: provider.completionModel(MODEL),
    prompt: "Say hello.",
    maxOutputTokens: 4,
    temperature: 0,
  });
  assert.ok(text);
});

test("streams: streamText", async () => {
  const { textStream, usage } = streamText({ model, prompt, temperature: 0 });
  let text = "";
  for await (const part of textStream) text += part;
  assert.equal(text, PARIS);
  assert.ok((await usage).outputTokens > 0);
});

const lookUp = tool({ description: "Looks a city up.", inputSchema: City, execute: async () => "Paris" });

test("tools: generateText calls a tool and has its result", async () => {
  const tools = { lookUp };
  const { toolCalls, toolResults } = await generateText({ model, prompt, tools, toolChoice: "required", temperature: 0 });
  assert.equal(toolCalls[0].toolName, "lookUp");
  assert.deepEqual(City.parse(toolCalls[0].input), toolCalls[0].input);
  assert.equal(toolResults[0].output, "Paris");
});

test("tools: streamText calls a tool", async () => {
  const { toolCalls } = streamText({ model, prompt, tools: { lookUp }, toolChoice: "required", temperature: 0 });
  assert.equal((await toolCalls)[0].toolName, "lookUp");
});

test("structured: generateObject", async () => {
  const { object } = await generateObject({ model, prompt, schema: City, temperature: 0 });
  assert.deepEqual(City.parse(object), object);
});

test("structured: streamText with an object for its output", async () => {
  const streamed = streamText({ model, prompt, output: Output.object({ schema: City }), temperature: 0 });
  assert.ok(City.parse(await streamed.output));
});

test("embeddings: embed", async () => {
  const { embedding, usage } = await embed({ model: provider.embeddingModel(MODEL), value: "Paris" });
  assert.ok(embedding.length > 100);
  assert.ok(usage.tokens > 0);
});

test("errors: a refusal is an APICallError with the server's words", async () => {
  const refused = generateText({ model, prompt, temperature: 3, maxRetries: 0 });
  await assert.rejects(refused, (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 400);
    assert.match(error.message, /temperature/);
    assert.equal(error.isRetryable, false);
    return true;
  });
});

test("errors: a stream that is refused says why", async () => {
  let told;
  const onError = ({ error }) => {
    told = error;
  };
  const { fullStream } = streamText({ model: provider("gpt-9"), prompt, maxRetries: 0, onError });
  for await (const part of fullStream) told ??= part.error;
  assert.equal(told.statusCode, 404);
  assert.match(told.message, /does not exist/);
});

test("retries: a full server is asked again", async () => {
  const busy = createOpenAICompatible({ name: "headrace", baseURL: BUSY_URL });
  const { finishReason } = await generateText({ model: busy("narrow"), prompt, maxOutputTokens: 1, maxRetries: 5 });
  assert.equal(finishReason, "length");
});
