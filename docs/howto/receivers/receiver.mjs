// A receiver of foreman's webhooks: Node 18 or newer, and nothing else.
//
// FOREMAN_WEBHOOK_SECRET=whsec_... node receiver.mjs 9000

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const seen = new Set(); // in your program: a table with a unique key, in the transaction of what you do

// whsec_... is base64, with padding or without; any other text is used as it is.
const key = (secret) =>
  secret.startsWith("whsec_") ? Buffer.from(secret.slice(6), "base64") : Buffer.from(secret);

// There are two while you change the secret.
const { FOREMAN_WEBHOOK_SECRET, FOREMAN_WEBHOOK_SECRET_PREVIOUS } = process.env;
const keys = [FOREMAN_WEBHOOK_SECRET, FOREMAN_WEBHOOK_SECRET_PREVIOUS].filter(Boolean).map(key);

function equal(given, expected) {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}

// What is wrong with a request; null when it is foreman's.
function complaint(headers, body) {
  const id = headers["webhook-id"] ?? "";
  const timestamp = headers["webhook-timestamp"] ?? "";
  if (!/^[0-9]{1,12}$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > 300)
    return "webhook-timestamp is missing, or more than 5 minutes from now";
  const given = (headers["webhook-signature"] ?? "").split(" ");
  const givenOfBody = headers["x-foreman-signature"] ?? "";
  for (const one of keys) {
    const hmac = (encoding, ...parts) =>
      parts.reduce((made, part) => made.update(part), createHmac("sha256", one)).digest(encoding);
    const v1 = "v1," + hmac("base64", `${id}.${timestamp}.`, body);
    const ofBody = "sha256=" + hmac("hex", body);
    if (given.some((part) => equal(part, v1)) && equal(givenOfBody, ofBody)) return null;
  }
  return "the signatures are missing or do not match";
}

// Your part. For more than some seconds of work, put it in a queue and answer.
function handle({ type, data }) {
  console.error(`${type} job=${data.job_id} sequence=${data.sequence}`);
}

function answer(response, status, text = "") {
  if (text) console.error(`refused: ${text}`);
  response.writeHead(status).end(text);
}

const server = createServer(async (request, response) => {
  try {
    const pieces = [];
    let size = 0;
    for await (const piece of request) {
      size += piece.length;
      if (size > 10_000_000) return answer(response, 413, "the body is too large");
      pieces.push(piece);
    }
    const body = Buffer.concat(pieces); // the bytes as they came: JSON that is written again differs
    const wrong = request.method === "POST" ? complaint(request.headers, body) : "this is no webhook";
    if (wrong) return answer(response, 401, wrong);
    const id = request.headers["webhook-id"];
    if (!seen.has(id)) {
      handle(JSON.parse(body));
      seen.add(id); // after it was done: if that fails, foreman sends it again
    }
    answer(response, 204);
  } catch (error) {
    answer(response, 500, String(error));
  }
});

if (keys.length === 0) {
  console.error("FOREMAN_WEBHOOK_SECRET is not set");
  process.exit(1);
}
server.listen(Number(process.argv[2]), "127.0.0.1", () =>
  console.error(`listening on port ${server.address().port}`),
);
