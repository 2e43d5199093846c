// Sealed payloads in JavaScript: the vectors that the Python client is tested with as well.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mock, test } from "node:test";

import { Sealing } from "../../signaling/browser/client/sealing.js";

const vectors = JSON.parse(readFileSync(new URL("../vectors/sealing.json", import.meta.url)));

for (const { name, secret, topic, nonce, text, payload, ...message } of vectors.sealed) {
  test(`a payload is sealed as the vectors say: ${name}`, async () => {
    const sealing = await Sealing.create(secret, topic);
    assert.deepEqual(await sealing.seal(message, text, Buffer.from(nonce, "hex")), payload);
  });
}

for (const { name, to, messages } of vectors.histories) {
  test(`a client opens what the vectors say: ${name}`, async () => {
    const sealing = await Sealing.create(vectors.secret, vectors.topic);
    for (const { message, ...expected } of messages) {
      assert.deepEqual(outcome(await sealing.open(message, to)), expected, JSON.stringify(message));
    }
  });
}

function outcome({ message, reason }) {
  if (reason) return { reason };
  return message ? { payload: message.payload ?? null } : { duplicate: true };
}

test("each message has a nonce of its own", async () => {
  const sealing = await Sealing.create(vectors.secret, vectors.topic);
  const message = { type: "offer", from: "a", to: "b", number: 1 };
  const made = await Promise.all(Array.from({ length: 100 }, () => sealing.seal(message, "1")));
  assert.equal(new Set(made.map(({ data }) => data.slice(0, 16))).size, 100);
});

test("only as many senders are remembered as documented, and those that are forgotten are refused for good", async () => {
  const sealing = await Sealing.create(vectors.secret, vectors.topic);
  mock.method(crypto.subtle, "decrypt", async () => new TextEncoder().encode("1").buffer);
  const data = "A".repeat(40);
  const receive = async (id, number) => {
    const from = `id ${String(id).padStart(6, "0")}`;
    return outcome(await sealing.open({ type: "offer", from, payload: { sealed: 1, number, data } }, "me"));
  };
  for (let id = 1; id <= 16_385; id++) await receive(id, 1);
  assert.deepEqual(await receive(1, 2), { reason: "its sender came too long ago" });
  assert.deepEqual(await receive(2, 2), { payload: 1 });
  mock.restoreAll();
});
