r"""One server, two host names, a certificate for each: the name that the client asks for (SNI) chooses.

Try it:

    mkdir certificates
    for name in one.example two.example; do
      openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=$name -addext subjectAltName=DNS:$name \
          -keyout certificates/$name.key -out certificates/$name.crt
    done
    python examples/sni.py
    curl --ssl-reqd --cacert certificates/two.example.crt --connect-to two.example:2525:127.0.0.1:2525 \
        smtp://two.example:2525 --mail-from ann@example.com --mail-rcpt bob@two.example --upload-file README.md
"""

import sys
from pathlib import Path

from pillarbox import MessageStream, Session, SMTPServer

certificates = Path(sys.argv[2] if len(sys.argv) > 2 else "certificates")
names = ["one.example", "two.example"]
pairs = {name: {"key": certificates / f"{name}.key", "cert": certificates / f"{name}.crt"} for name in names}


async def on_data(stream: MessageStream, session: Session) -> str:
    await stream.read()
    return f"OK: taken for {session.servername}"


server = SMTPServer(
    key=pairs["one.example"]["key"],  # where the client asks for no name, or one that is not listed
    cert=pairs["one.example"]["cert"],
    sni_options=pairs,
    auth_optional=True,
    logger=True,
    on_data=on_data,
)
server.run(int(sys.argv[1]) if len(sys.argv) > 1 else 2525, "127.0.0.1")
