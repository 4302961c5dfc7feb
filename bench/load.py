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
from pathlib import Path

MAIL, DATA = b"MAIL FROM:<sender@example.org>\r\n", b"DATA\r\n"
RCPT = b"RCPT TO:<ann@example.com>\r\n"
CREDENTIAL = base64.b64encode(b"\0alice\0secret")


class Refused(Exception):
    """The server said no; the text is its reply."""


class Client:
    """One connection of the simplest client there is: blocking, and it knows what it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

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


# --- Opening

EHLO, STARTTLS, QUIT = b"EHLO client.example\r\n", b"STARTTLS\r\n", b"QUIT\r\n"
# So many connect before their greetings are waited for: smtp-server on Node takes 100 ms for each, and no server
# here lets fewer wait to be accepted.
AT_ONCE = 500


def opened(given: argparse.Namespace, context: ssl.SSLContext | None) -> list[Client]:
    clients: list[Client] = []
    while len(clients) < given.sessions:
        some = [Client(given.port) for _ in range(min(AT_ONCE, given.sessions - len(clients)))]
        for client in some:
            client.expect(1)
        greet(some, given, context)
        clients += some
    return clients


def greet(clients: list[Client], given: argparse.Namespace, context: ssl.SSLContext | None) -> None:
    tell(clients, EHLO)
    if context is not None:
        tell(clients, STARTTLS)
        for client in clients:
            client.socket = context.wrap_socket(client.socket)
        tell(clients, EHLO)
    if given.auth:
        tell(clients, b"AUTH PLAIN " + CREDENTIAL + b"\r\n")
    if given.idle:
        tell(clients, MAIL)


# --- Delivering


def steps(octets: bytes, pipelining: bool) -> list[tuple[bytes, int]]:
    """Return what is said for one message, and how many replies each step has."""
    if pipelining:  # RFC 2920 3.1: DATA is the last of its group
        return [(MAIL + RCPT + DATA, 3), (octets, 1)]
    return [(MAIL, 1), (RCPT, 1), (DATA, 1), (octets, 1)]


def tell(clients: list[Client], said: bytes, replies: int = 1) -> None:
    """Tell each, then listen to each."""
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
    script = steps(given.octets.read_bytes() if given.octets else b"\r\n.\r\n", given.pipelining)
    clients = [] if given.each else opened(given, context)
    print("ready", flush=True)
    sys.stdin.readline()
    if given.latency:
        done = latency(clients, script, given.latency)
    else:
        done = {"messages": 0 if given.idle else delivered(given, script, clients, context)}
    print(json.dumps(done), flush=True)
    sys.stdin.read()


def latency(clients: list[Client], script: list[tuple[bytes, int]], seconds: float) -> dict[str, float]:
    taken = sorted(latencies(clients, script, seconds))
    return {"messages": len(taken), "median": statistics.median(taken), "p99": taken[int(len(taken) * 0.99)]}


def delivered(
    given: argparse.Namespace, script: list[tuple[bytes, int]], clients: list[Client], context: ssl.SSLContext | None
) -> int:
    """Deliver on the sessions that are open, or on new ones each time; return how many messages it was."""
    sessions: int = given.sessions
    rounds: int = -(-given.messages // sessions)
    for _ in range(rounds):
        here = clients or opened(given, context)
        for said, replies in script:
            tell(here, said, replies)
        if not clients:
            tell(here, QUIT)
            for client in here:
                client.socket.close()
    return rounds * sessions


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
