"""The receiver of a webhook, with the standard library alone: it checks who asks, and stores each message as a file.

Try it:

    python examples/webhook_receiver.py
    pillarbox serve --config examples/webhook.toml
    swaks --server 127.0.0.1:2525 --to ann@example.com
    swaks --server 127.0.0.1:2525 --to nobody@example.com
"""

import base64
import hmac
import json
import os
import sys
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET = "whsec_Zm9yIHRoZSBleGFtcGxlLCBub3QgZm9yIHlvdXJzIQ=="
MAILBOXES = {"ann@example.com"}


def is_ours(headers: Message, payload: bytes) -> bool:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + payload
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    if abs(time.time() - int(headers["webhook-timestamp"] or 0)) > 300:  # an old request that somebody repeats
        return False
    return any(hmac.compare_digest(expected, each) for each in (headers["webhook-signature"] or "").split())


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        payload = self.rfile.read(int(self.headers["Content-Length"]))
        if not is_ours(self.headers, payload):
            self.answer(401, {})
            return
        data = json.loads(payload)["data"]
        recipients = [to["address"] for to in data["envelope"]["rcpt_to"]]
        unknown = [address for address in recipients if address not in MAILBOXES]
        if len(unknown) < len(recipients):
            # The same id again: an earlier answer was lost. The file is then replaced by itself.
            store(self.headers["webhook-id"], base64.b64decode(data["message"]["raw"]))
            print(f"{data['envelope']['mail_from']['address']}: {data['subject']}", flush=True)
        self.answer(200, {"recipients": {to: {"code": 550, "text": "No such mailbox"} for to in unknown}})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def store(identifier: str, message: bytes) -> None:
    """Store a message so that no power cut loses it: with the answer 200 it is ours."""
    part = Path(f"{identifier}.part")
    with part.open("wb") as file:
        file.write(message)
        file.flush()
        os.fsync(file.fileno())
    part.replace(f"{identifier}.eml")
    folder = os.open(".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8080), Receiver)
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
