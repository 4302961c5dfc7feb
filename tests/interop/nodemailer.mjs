// Deliver a message with nodemailer, "times" times, all at once. Standard input: {"transport": {…}, "message": {envelope,
// …}, "raw": base64, "times": 1}; standard output: what nodemailer reports of the last, or {"error": {…}}.

import { text } from "node:stream/consumers";
import nodemailer from "nodemailer";

const order = JSON.parse(await text(process.stdin));
const transport = nodemailer.createTransport(order.transport);
const raw = Buffer.from(order.raw, "base64");
try {
  const reports = await Promise.all(
    Array.from({ length: order.times }, () => transport.sendMail({ ...order.message, raw })),
  );
  const { accepted, rejected, rejectedErrors = [], response } = reports.at(-1);
  const refusals = rejectedErrors.map((error) => error.response);
  console.log(JSON.stringify({ accepted, rejected, refusals, response }));
} catch ({ code, responseCode, message }) {
  console.log(JSON.stringify({ error: { code, responseCode, message } }));
} finally {
  transport.close();
}
