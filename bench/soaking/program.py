"""The server of ``--target serve``: ``pillarbox serve`` itself, with a Maildir, and a probe in its process.

    python -m soaking.program FOLDER asyncio|uvloop

It listens as the library's does, and stores in FOLDER/mail.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from soaking import probe
from soaking.place import LIMITS

import pillarbox
from pillarbox.cli import main as program

_CONFIGURATION = """\
[server]
name = "soak.example"
disable_reverse_lookup = true
{limits}
[[listen]]
address = "127.0.0.1:0"

[[listen]]
address = "127.0.0.1:0"
secure = true

[[listen]]
address = "unix:{folder}/lmtp"
lmtp = true

[[deliver]]
url = "maildir:{folder}/mail"
"""


def main() -> None:
    folder, loop = Path(sys.argv[1]), sys.argv[2]
    blocked: dict[str, Any] = sys.modules
    if loop == "asyncio":
        blocked["uvloop"] = None  # what the program finds where it is not installed
    limits = "".join(f"{name} = {json.dumps(value)}\n" for name, value in LIMITS.items())
    file = folder / "pillarbox.toml"
    file.write_text(_CONFIGURATION.format(limits=limits, folder=folder), encoding="utf-8")
    pillarbox.SMTPServer = probe.Watched  # type: ignore[misc]  # what the program makes its server of
    probe.watch()
    sys.argv[1:] = ["serve", "--config", str(file), "--log-level", "warning"]
    program()


if __name__ == "__main__":
    main()
