"""The load that smtp-source cannot make: pipelining, TLS, AUTH, any octets, idle sessions, latencies.

    python load.py PORT [--sessions N] [--messages N] [--octets FILE] [--pipelining] [--tls] [--auth] [--each]
                        [--idle | --latency SECONDS]

It opens its sessions, says ``ready`` and waits for a line; then it delivers, says what it did as JSON and holds the
sessions until its input ends. So the runner can read the server's account at both moments. Sessions go in lockstep:
each is told its next step, then each is listened to.
"""

from __future__ import annotations

import argparse
import base64
import json
import selectors
import socket
import ssl
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MAIL, DATA = b"MAIL FROM:<sender@example.org>\r\n", b"DATA\r\n"
RCPT = b"RCPT TO:<ann@example.com>\r\n"
CREDENTIAL = base64.b64encode(b"\0alice\0secret")


class Refused(Exception):
    """The server said no; the text is its reply."""


class Client:
    """One connection of the simplest client there is: blocking, and it knows what it waits for."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, auth: bool) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expect(1)
        self.say(b"EHLO client.example\r\n")
        if tls is not None:
            self.say(b"STARTTLS\r\n")
            self.socket = tls.wrap_socket(self.socket)
            self.say(b"EHLO client.example\r\n")
        if auth:
            self.say(b"AUTH PLAIN " + CREDENTIAL + b"\r\n")

    def expect(self, replies: int) -> None:
        """Wait for so many replies, none of them a refusal."""
        octets = b""
        while True:
            more = self.socket.recv(65536)
            if not more:
                raise Refused("the server closed the connection")
            octets += more
            if octets.endswith(b"\n"):
                last = [line for line in octets.splitlines() if line[3:4] != b"-"]
                for line in last:
                    if line[:1] not in b"23":
                        raise Refused(line.decode("utf-8", "replace"))
                if len(last) >= replies:
                    return

    def say(self, octets: bytes) -> None:
        self.socket.sendall(octets)
        self.expect(1)

    def quit(self) -> None:
        self.say(b"QUIT\r\n")
        self.socket.close()


# --- Delivering


def steps(octets: bytes, pipelining: bool) -> list[tuple[bytes, int]]:
    """Return what is said for one message, and how many replies each step has."""
    if pipelining:  # RFC 2920 3.1: DATA is the last of its group
        return [(MAIL + RCPT + DATA, 3), (octets, 1)]
    return [(MAIL, 1), (RCPT, 1), (DATA, 1), (octets, 1)]


def in_lockstep(clients: list[Client], script: list[tuple[bytes, int]]) -> None:
    for said, replies in script:
        for client in clients:
            client.socket.sendall(said)
        for client in clients:
            client.expect(replies)


def latencies(clients: list[Client], script: list[tuple[bytes, int]], seconds: float) -> list[float]:
    """Deliver on each session as fast as it is answered; return how long each message took."""
    chooser, taken, finish = selectors.EpollSelector(), [], time.perf_counter() + seconds
    at, begun = dict.fromkeys(clients, 0), dict.fromkeys(clients, time.perf_counter())
    for client in clients:
        chooser.register(client.socket, selectors.EVENT_READ, client)
        client.socket.sendall(script[0][0])
    busy = len(clients)
    while busy:
        for key, _ in chooser.select():
            client = key.data
            client.expect(script[at[client]][1])
            at[client] = (at[client] + 1) % len(script)
            now = time.perf_counter()
            if at[client] == 0:
                taken.append(now - begun[client])
                begun[client] = now
                if now > finish:
                    busy -= 1
                    continue
            client.socket.sendall(script[at[client]][0])
    return taken


# --- The program


def main() -> None:
    given = arguments()
    try:
        run(given)
    except (Refused, OSError) as problem:
        print(json.dumps({"refused": str(problem)}), flush=True)
        sys.exit(1)


def run(given: argparse.Namespace) -> None:
    context = trusting() if given.tls else None

    def clients() -> list[Client]:
        return [Client(given.port, context, given.auth) for _ in range(given.sessions)]

    script = steps(given.octets.read_bytes() if given.octets else b"\r\n.\r\n", given.pipelining)
    opened = [] if given.each else clients()
    if given.idle:
        for client in opened:
            client.say(MAIL)
    print("ready", flush=True)
    sys.stdin.readline()
    for done in delivered(given, script, opened, clients):
        print(json.dumps(done), flush=True)
    sys.stdin.read()


def delivered(
    given: argparse.Namespace, script: list[tuple[bytes, int]], opened: list[Client], clients: Callable[[], list[Client]]
) -> Iterator[dict[str, float]]:
    """Do what was asked, and say what it was."""
    if given.idle:
        return
    if given.latency:
        taken = sorted(latencies(opened, script, given.latency))
        yield {
            "messages": len(taken),
            "median": statistics.median(taken),
            "p99": taken[int(len(taken) * 0.99)],
        }
        return
    rounds = -(-given.messages // given.sessions)
    for _ in range(rounds):
        here = opened or clients()
        in_lockstep(here, script)
        if not opened:
            for client in here:
                client.quit()
    yield {"messages": rounds * given.sessions}


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--messages", type=int, default=1)
    parser.add_argument("--octets", type=Path)
    for flag in ("--pipelining", "--tls", "--auth", "--each", "--idle"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--latency", type=float, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
