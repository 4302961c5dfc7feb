// smtp-server as the differential tests ask it: everybody may send, and the reply to a message says what arrived.
//
//     node server.mjs FOLDER KEY CERT     FOLDER is where smtp-server is installed; prints "listening on 127.0.0.1:PORT"

import { createHash } from "node:crypto";
import fs from "node:fs";
import { createRequire } from "node:module";

const [folder, key, cert] = process.argv.slice(2);
const { SMTPServer } = createRequire(folder + "/")("smtp-server");

// As marker() in play.py.
const quoted = (text) =>
    Array.from(new TextEncoder().encode(text), (octet) =>
        /[A-Za-z0-9_.~@-]/.test(String.fromCharCode(octet))
            ? String.fromCharCode(octet)
            : "%" + octet.toString(16).toUpperCase().padStart(2, "0")
    ).join("");
const first = (text) => Array.from(text).slice(0, 90).join("");

const server = new SMTPServer({
    name: "mx.example.com",
    size: 1000000,
    hideDSN: false,
    disableReverseLookup: true,
    authOptional: true,
    allowInsecureAuth: true,
    authMethods: ["PLAIN", "LOGIN"],
    key: fs.readFileSync(key),
    cert: fs.readFileSync(cert),
    onAuth: (auth, session, callback) =>
        auth.username === "alice" && auth.password === "secret"
            ? callback(null, { user: auth.username })
            : callback(new Error("no")),
    onData: (stream, session, callback) => {
        const blocks = [];
        stream.on("data", (block) => blocks.push(block));
        stream.on("end", () => {
            const { mailFrom, rcptTo } = session.envelope;
            const lines = Buffer.concat(blocks).toString("latin1").replace(/\r\n/g, "\n").replace(/\r/g, " ");
            const parts = [mailFrom.address, rcptTo.map((to) => to.address).join(","), lines].map(first).map(quoted);
            const digest = createHash("sha256").update(lines, "latin1").digest("hex").slice(0, 16);
            const tooLarge = stream.sizeExceeded ? Object.assign(new Error("too large"), { responseCode: 552 }) : null;
            callback(tooLarge, `got ${parts.join("|")}|${lines.length}:${digest}`);
        });
    },
});
server.on("error", () => {});
server.listen(0, "127.0.0.1", () => console.log("listening on 127.0.0.1:" + server.server.address().port));
