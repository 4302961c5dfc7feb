"""Write each message to a file while it arrives: memory holds a block of it, however large it is.

Try it:

    python examples/stream_to_file.py 2525 inbox
    swaks --server 127.0.0.1:2525 --to ann@example.com --attach @README.md
"""

import asyncio
import os
import sys
from io import BufferedWriter
from pathlib import Path

from pillarbox import MessageStream, Session, SMTPServer

folder = Path(sys.argv[2] if len(sys.argv) > 2 else "inbox")
folder.mkdir(exist_ok=True)


async def on_data(stream: MessageStream, session: Session) -> str:
    name = f"{session.id}-{session.transaction}.eml"
    partial = folder / f"{name}.partial"
    try:
        # A disk may be slow: a thread waits for it, the server goes on, and this client sends no more meanwhile.
        with await asyncio.to_thread(partial.open, "xb") as file:
            async for block in stream:  # it raises where the client goes away, or sends more than `size`
                await asyncio.to_thread(file.write, block)
            await asyncio.to_thread(finish, file, folder / name)
    finally:
        partial.unlink(missing_ok=True)
    return f"OK: {stream.byte_length} bytes in {name}"  # only now does the client forget the message


def finish(file: BufferedWriter, path: Path) -> None:
    """Give the file its name, and make sure that both outlive a power failure."""
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).rename(path)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


server = SMTPServer(auth_optional=True, size=100 * 2**20, logger=True, on_data=on_data)
server.run(int(sys.argv[1]) if len(sys.argv) > 1 else 2525, "127.0.0.1")
