"""nginx as the HTTP server that a webhook posts to: in front of an application, and with a limit of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from endpoint import SECRET, endpoint, refused, webhook
from interop.peers import Background, program
from messages import message

HTTP = "to nginx"
CONFIGURATION = """\
{user}
pid {folder}/pid;
daemon off;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    client_max_body_size 10m;
    server {{
        listen unix:{folder}/s;
        location / {{ proxy_pass {upstream}; }}
        location /gone {{ return 410; }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[str]:
    """Run nginx on a Unix socket; return its path."""
    user = "user root;" if os.geteuid() == 0 else ""  # the workers write in this folder, which nobody else may enter
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, upstream=upstream, user=user))
    arguments = (program("nginx", "nginx"), "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf")
    with Background(*arguments, folder=folder) as running:
        running.line("start worker process ")
        yield str(folder / "s")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a path that is short enough for a Unix socket."""
    return tmp_path_factory.mktemp("n")


@pytest.mark.proves(HTTP, "a webhook behind it: streamed, signed")
@pytest.mark.parametrize("size", [1, 100])  # blocks of 64 KiB
async def test_through_nginx_to_an_application(folder: Path, size: int) -> None:
    async with endpoint() as application:
        with nginx(folder, application.url.removesuffix("/in")) as path:
            async with webhook("http://hooks.example.com/in", socket=path, secret=SECRET) as target:
                [answer] = await target.deliver(message(*[b"x" * 65536] * size))
    assert isinstance(answer, str)
    [got] = application.got
    assert got.is_signed_as(got.body)
    assert got.parts()["message"][1] == b"x" * 65536 * size


@pytest.mark.proves(HTTP, "what it refuses itself, while the message comes")
async def test_what_nginx_itself_answers(folder: Path) -> None:
    with nginx(folder, "http://127.0.0.1:9") as path:
        async with webhook("http://hooks.example.com/in", socket=path, attempts=1) as target:
            # It refuses while most of the message is still to come.
            assert await refused(target, b"x" * 50_000_000) == "552 5.3.4 Error: message too large"
            assert (await refused(target)).startswith("451 ")  # 502: nobody is behind it
        async with webhook("http://hooks.example.com/gone", socket=path) as target:
            assert (await refused(target)).startswith("550 5.2.1 ")
