// Deliver one message with nodemailer. Standard input: {"transport": {…}, "envelope": {from, to}, "raw": base64};
// standard output: what nodemailer reports, or {"error": {…}}.

import { text } from "node:stream/consumers";
import nodemailer from "nodemailer";

const order = JSON.parse(await text(process.stdin));
const transport = nodemailer.createTransport(order.transport);
try {
  const { accepted, rejected, rejectedErrors = [], response } = await transport.sendMail({
    envelope: order.envelope,
    raw: Buffer.from(order.raw, "base64"),
  });
  const refusals = rejectedErrors.map((error) => error.response);
  console.log(JSON.stringify({ accepted, rejected, refusals, response }));
} catch ({ code, responseCode, message }) {
  console.log(JSON.stringify({ error: { code, responseCode, message } }));
} finally {
  transport.close();
}
