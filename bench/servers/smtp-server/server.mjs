// smtp-server as it is measured: its own defaults, handlers that accept, a message that is read and dropped.
//
//     node server.mjs PORT plain|tls|auth|lmtp

import fs from "node:fs";
import { SMTPServer } from "smtp-server";

const [port, mode] = process.argv.slice(2);

const options = {
    disableReverseLookup: true,
    authOptional: mode !== "auth",
    allowInsecureAuth: mode === "auth",
    lmtp: mode === "lmtp",
    onAuth: (auth, session, callback) => callback(null, { user: auth.username }),
    onData: (stream, session, callback) => {
        stream.on("end", () => callback());
        stream.resume();
    },
};
if (mode === "tls") {
    options.key = fs.readFileSync(process.env.BENCH_KEY);
    options.cert = fs.readFileSync(process.env.BENCH_CERT);
}

const server = new SMTPServer(options);
server.on("error", () => {});
server.listen(Number(port), "127.0.0.1", 1024);
