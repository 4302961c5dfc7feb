"""Contexts as they are made, and as true handshakes in memory see them."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from pillarbox.errors import ConfigurationError
from pillarbox.net import certificates
from pillarbox.net.tls import TLSContexts, tls_info
from pillarbox.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = "Zesty-Password-73"
RSA, ECDSA = trustme.KeyType.RSA, trustme.KeyType.ECDSA


class Ends(NamedTuple):
    server: ssl.SSLObject
    client: ssl.SSLObject

    @property
    def subject_names(self) -> set[str]:
        """The names in the certificate that the client saw."""
        der = self.client.getpeercert(binary_form=True)
        assert der is not None
        extension = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(extension.value.get_values_for_type(x509.DNSName))


def handshake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None = None,
    *,
    session: ssl.SSLSession | None = None,
    on_the_way: Callable[[bytes], bytes] = bytes,
) -> Ends:
    """Let both ends shake hands through memory; raises what the first to fail raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = Ends(
        server.wrap_bio(to_server, from_server := ssl.MemoryBIO(), server_side=True),
        client.wrap_bio(to_client, from_client := ssl.MemoryBIO(), server_hostname=name, session=session),
    )
    unfinished = [ends.client, ends.server]
    for _ in range(10):
        for end in list(unfinished):
            try:
                end.do_handshake()
                unfinished.remove(end)
            except ssl.SSLWantReadError:
                pass
            to_server.write(on_the_way(from_client.read()))
            to_client.write(from_server.read())
    assert not unfinished
    with pytest.raises(ssl.SSLWantReadError):  # takes in the session tickets, and shows a late alert
        ends.client.read(1)
    return ends


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


class Pair(NamedTuple):
    key: bytes
    cert: bytes


def issue(ca: trustme.CA, *names: str, kind: trustme.KeyType = ECDSA) -> Pair:
    leaf = ca.issue_cert(*names, key_type=kind)
    return Pair(leaf.private_key_pem.bytes(), b"".join(pem.bytes() for pem in leaf.cert_chain_pems))


@pytest.fixture(scope="module")
def pair(authority: trustme.CA) -> Pair:
    return issue(authority, "mx.example.com")


@pytest.fixture(scope="module")
def other(authority: trustme.CA) -> Pair:
    return issue(authority, "other.example.com")


@pytest.fixture(scope="module")
def encrypted(pair: Pair) -> bytes:
    key = serialization.load_pem_private_key(pair.key, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSWORD.encode()),
    )


def client_of(*authorities: trustme.CA, identity: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for ca in authorities:
        ca.configure_trust(context)
    if identity is not None:
        identity.configure_cert(context)
    return context


def careless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def at_most(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


# --- Where key and certificate come from


def _as_text(pair: Pair, _: Path) -> tuple[Any, Any]:
    return pair.key.decode(), pair.cert.decode()


def _as_bytes(pair: Pair, _: Path) -> tuple[Any, Any]:
    return pair.key, pair.cert


def _as_path(pair: Pair, folder: Path) -> tuple[Any, Any]:
    (folder / "key.pem").write_bytes(pair.key)
    (folder / "cert.pem").write_bytes(b"# a comment in \xe9\n" + pair.cert)
    return folder / "key.pem", folder / "cert.pem"


def _as_name_of_path(pair: Pair, folder: Path) -> tuple[Any, Any]:
    key, cert = _as_path(pair, folder)
    return str(key), str(cert)


def _as_list(pair: Pair, folder: Path) -> tuple[Any, Any]:
    return [pair.key], [pair.cert.decode()]


FORMS = [_as_text, _as_bytes, _as_path, _as_name_of_path, _as_list]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_form_of_key_and_certificate(
    form: Callable[[Pair, Path], tuple[Any, Any]],
    in_memory: bool,
    authority: trustme.CA,
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not in_memory:
        monkeypatch.setattr(certificates, "_in_memory", lambda *_: None)
    key, cert = form(pair, tmp_path)
    contexts = TLSContexts(Options(key=key, cert=cert))
    assert handshake(contexts.context, client_of(authority), "mx.example.com").subject_names == {"mx.example.com"}
    assert not list(tmp_path.glob("pillarbox-*")), "nothing is left of the temporary file"


def test_the_temporary_file_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(certificates, "_in_memory", lambda *_: None)
    with certificates.file_of(b"secret") as path:
        assert Path(path).read_bytes() == b"secret"
        if os.name == "posix":
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert not Path(path).exists()


def test_without_memory_files_the_disk_takes_their_place(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    TLSContexts(Options(key=pair.key, cert=pair.cert))


def test_an_encrypted_key(authority: trustme.CA, pair: Pair, encrypted: bytes) -> None:
    contexts = TLSContexts(Options(key=encrypted, cert=pair.cert, key_password=PASSWORD))
    handshake(contexts.context, client_of(authority), "mx.example.com")


def test_two_pairs_serve_clients_of_both_kinds(authority: trustme.CA) -> None:
    pairs = [issue(authority, "mx.example.com", kind=kind) for kind in (RSA, ECDSA)]
    contexts = TLSContexts(Options(key=[p.key for p in pairs], cert=[p.cert for p in pairs]))
    for algorithm in ("RSA", "ECDSA"):
        client = at_most(client_of(authority), ssl.TLSVersion.TLSv1_2)
        client.set_ciphers(f"ECDHE-{algorithm}-AES128-GCM-SHA256")
        ends = handshake(contexts.context, client, "mx.example.com")
        assert tls_info(ends.server).cipher == f"ECDHE-{algorithm}-AES128-GCM-SHA256"


# --- What cannot be used is an error at construction


def refused(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TLSContexts(Options(**options))
    error = caught.value
    assert error.__context__ is None or error.__suppress_context__, "the cause could show what the text does not"
    return str(error)


def test_a_file_that_is_not_there(pair: Pair) -> None:
    text = refused(key="/nowhere/key.pem", cert=pair.cert)
    assert text == "option key: cannot read '/nowhere/key.pem': No such file or directory"
    assert refused(key=pair.key, cert="/nowhere/cert.pem").startswith("option cert: cannot read '/nowhere/cert.pem'")
    assert refused(key=pair.key, cert="a\0b").startswith("option cert: cannot read ")
    assert refused(ca=["/nowhere/ca.pem"]).startswith("option ca: cannot read '/nowhere/ca.pem'")


def test_a_folder(pair: Pair, tmp_path: Path) -> None:
    assert refused(key=pair.key, cert=tmp_path).startswith(f"option cert: cannot read {str(tmp_path)!r}")


def test_key_and_certificate_exchanged(pair: Pair, tmp_path: Path) -> None:
    key, cert = _as_path(pair, tmp_path)
    assert refused(key=cert, cert=key) == f"option key: {str(cert)!r} holds no PEM private key"
    assert refused(key=key, cert=key) == f"option cert: {str(key)!r} holds no PEM certificate"


def test_damage(pair: Pair) -> None:
    broken_cert = pair.cert.replace(b"\nMII", b"\nXXX")
    broken_key = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    assert refused(key=pair.key, cert=broken_cert).startswith("option cert: OpenSSL cannot use the PEM text: ")
    assert refused(key=broken_key, cert=pair.cert).startswith("option key: OpenSSL cannot use the PEM text: ")
    assert refused(ca=broken_cert).startswith("option ca: OpenSSL cannot use the PEM text: ")


def test_the_key_of_another_certificate(authority: trustme.CA, pair: Pair, other: Pair, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(other.key)
    text = refused(key=tmp_path / "other.pem", cert=pair.cert)
    assert text == f"option key: {str(tmp_path / 'other.pem')!r} does not belong to the certificate in the PEM text"
    rsa = issue(authority, "mx.example.com", kind=RSA)
    assert "does not belong" in refused(key=rsa.key, cert=pair.cert)
    assert "does not belong" in refused(key=[rsa.key, rsa.key], cert=[rsa.cert, pair.cert])


def test_a_list_that_lacks_one(pair: Pair) -> None:
    text = refused(key=[pair.key], cert=[pair.cert, pair.cert])
    assert text == "option cert: each certificate needs its key: 2 of cert, 1 of key"
    assert refused(key=[], cert=[]).startswith("option cert: ")


def test_an_encrypted_key_without_its_password_asks_nobody(pair: Pair, encrypted: bytes, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(encrypted)
    text = refused(key=tmp_path / "key.pem", cert=pair.cert)
    assert text == f"option key: {str(tmp_path / 'key.pem')!r} is encrypted: set key_password"


@pytest.mark.parametrize("password", ["Wrong-Password-12", "", "long" * 1000])
def test_a_wrong_password(password: str, pair: Pair, encrypted: bytes) -> None:
    text = refused(key=encrypted, cert=pair.cert, key_password=password)
    assert text == "option key_password: does not open the PEM text"


def test_a_key_without_its_first_line_is_not_shown(pair: Pair) -> None:
    body = "".join(pair.key.decode().splitlines()[1:-1])
    for form in (body, body[:30] + "\n" + body[30:]):
        assert body[:20] not in refused(key=form, cert=pair.cert)


@pytest.mark.parametrize("ciphers", ["TLS_AES_256_GCM_SHA384", "NO-SUCH-CIPHER", "ALL:!ALL", "a\0b"])
def test_a_list_that_leaves_no_cipher(ciphers: str) -> None:
    assert refused(ciphers=ciphers).startswith(f"option ciphers: {ciphers!r} leaves no cipher")


def test_sni_options_are_checked_too(pair: Pair, other: Pair, encrypted: bytes) -> None:
    def entry(**changes: Any) -> str:
        host = {"key": pair.key, "cert": pair.cert, **changes}
        return refused(sni_options={"mx.example.com": host})

    where = "option sni_options: 'mx.example.com': "
    assert entry(key="/nowhere/key.pem").startswith(where + "key: cannot read '/nowhere/key.pem'")
    assert entry(key=other.key).startswith(where + "key: the PEM text does not belong")
    assert entry(key=encrypted) == where + "key: the PEM text is encrypted: set key_password"
    assert entry(ca=b"nothing") == where + "ca: the PEM text holds no PEM certificate"
    assert entry(cert=None).startswith(where + "cert: each certificate needs its key")
    assert entry(cert=5) == where + "cert: must be PEM text, bytes or a path, not int"


@pytest.mark.parametrize("host", ["", "*", "a b", "192.0.2.1", "bü cher", "a..b", "*.*.example"])
def test_a_host_that_no_client_can_ask_for(host: str, pair: Pair) -> None:
    text = refused(sni_options={host: {"key": pair.key, "cert": pair.cert}})
    assert text.startswith(f"option sni_options: {host!r} is no host name")


def test_a_host_that_stands_there_twice(pair: Pair) -> None:
    entry = {"key": pair.key, "cert": pair.cert}
    assert "'MX.example.com' stands there twice" in refused(
        sni_options={"mx.example.com": entry, "MX.example.com": entry}
    )


# --- Versions and ciphers


@pytest.mark.promises("TLS", "By default TLS 1.2 is the oldest version; there is no compression and no renegotiation.")
def test_what_every_context_refuses(pair: Pair) -> None:
    context = TLSContexts(Options(key=pair.key, cert=pair.cert)).context
    wanted = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.options & wanted == wanted
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 2


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"])
def test_the_oldest_version_that_is_let_in(version: Any, authority: trustme.CA) -> None:
    versions = {"TLSv1": 0x301, "TLSv1.1": 0x302, "TLSv1.2": 0x303, "TLSv1.3": 0x304}
    rsa = issue(authority, "mx.example.com", kind=RSA)
    server = TLSContexts(Options(key=rsa.key, cert=rsa.cert, minimum_tls_version=version)).context
    for name, number in versions.items():
        client = at_most(client_of(authority), ssl.TLSVersion(number))
        if number < versions[version]:
            with pytest.raises(ssl.SSLError):
                handshake(server, client, "mx.example.com")
        else:
            assert tls_info(handshake(server, client, "mx.example.com").server).version == name


def test_an_old_version_with_ciphers_of_ones_own(authority: trustme.CA, pair: Pair) -> None:
    options = Options(key=pair.key, cert=pair.cert, minimum_tls_version="TLSv1", ciphers="ECDHE-ECDSA-AES256-SHA")
    client = at_most(client_of(authority), ssl.TLSVersion.TLSv1)
    assert handshake(TLSContexts(options).context, client, "mx.example.com").server.version() == "TLSv1"


def test_the_ciphers_option_chooses(authority: trustme.CA, pair: Pair) -> None:
    options = Options(key=pair.key, cert=pair.cert, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")
    client = at_most(client_of(authority), ssl.TLSVersion.TLSv1_2)
    info = tls_info(handshake(TLSContexts(options).context, client, "mx.example.com").server)
    assert info.cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"


# --- The self-signed certificate


def test_a_certificate_for_localhost_where_none_is_given() -> None:
    first, second = TLSContexts(Options()), TLSContexts(Options())
    ends = handshake(first.context, careless(), "localhost")
    der = ends.client.getpeercert(binary_form=True)
    assert der is not None
    assert der == handshake(second.context, careless()).client.getpeercert(binary_form=True), "one for the process"
    trusting = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(der))
    for name in ("localhost", "127.0.0.1", "::1"):
        handshake(first.context, trusting, name)
    certificate = x509.load_der_x509_certificate(der)
    assert 360 < (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days < 370


def test_it_is_made_when_it_is_needed_and_fresh_in_each_process() -> None:
    program = (
        "import sys; from pillarbox.net.tls import TLSContexts; from pillarbox.options import Options\n"
        "contexts = TLSContexts(Options(sni_callback=lambda name: None))\n"
        "assert 'cryptography' not in sys.modules; contexts.context; assert 'cryptography' in sys.modules\n"
        "from pillarbox.net import certificates; print(certificates.self_signed_certificate())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(certificates.__file__).parents[2])}
    run = [subprocess.check_output([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert run[0] != run[1]


# --- Client certificates


def client_options(pair: Pair, ca: trustme.CA | None, **more: Any) -> Options:
    given = None if ca is None else ca.cert_pem.bytes()
    return Options(key=pair.key, cert=pair.cert, ca=given, request_cert=True, **more)


def test_a_required_certificate(authority: trustme.CA, stranger: trustme.CA, pair: Pair) -> None:
    server = TLSContexts(client_options(pair, authority)).context
    mine = authority.issue_cert("client@example.com")
    info = tls_info(handshake(server, client_of(authority, identity=mine), "mx.example.com").server)
    assert info.authorized
    assert info.peer_certificate == ssl.PEM_cert_to_DER_cert(mine.cert_chain_pems[0].bytes().decode())
    for identity in (None, stranger.issue_cert("client@example.com")):
        with pytest.raises(ssl.SSLError):
            handshake(server, client_of(authority, identity=identity), "mx.example.com")


def test_an_optional_certificate(authority: trustme.CA, stranger: trustme.CA, pair: Pair) -> None:
    server = TLSContexts(client_options(pair, authority, reject_unauthorized=False)).context
    for identity in (None, authority.issue_cert("client@example.com")):
        ends = handshake(server, client_of(authority, identity=identity), "mx.example.com")
        assert tls_info(ends.server).authorized is (identity is not None)
    client = client_of(authority, identity=stranger.issue_cert("client@example.com"))
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "mx.example.com")


def test_no_certificate_is_asked_for_by_default(authority: trustme.CA, pair: Pair) -> None:
    server = TLSContexts(Options(key=pair.key, cert=pair.cert, ca=authority.cert_pem.bytes())).context
    client = client_of(authority, identity=authority.issue_cert("client@example.com"))
    info = tls_info(handshake(server, client, "mx.example.com").server)
    assert (info.peer_certificate, info.authorized) == (None, False)


def test_several_authorities(authority: trustme.CA, stranger: trustme.CA, pair: Pair) -> None:
    both: list[str | bytes] = [authority.cert_pem.bytes().decode(), stranger.cert_pem.bytes()]
    server = TLSContexts(Options(key=pair.key, cert=pair.cert, ca=both, request_cert=True)).context
    for ca in (authority, stranger):
        client = client_of(authority, identity=ca.issue_cert("client@example.com"))
        assert tls_info(handshake(server, client, "mx.example.com").server).authorized


def test_the_systems_authorities_where_none_are_given(
    authority: trustme.CA, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "system.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    server = TLSContexts(client_options(pair, None)).context
    client = client_of(authority, identity=authority.issue_cert("client@example.com"))
    assert tls_info(handshake(server, client, "mx.example.com").server).authorized


# --- Server names


@pytest.fixture
def hosts(authority: trustme.CA) -> dict[str, dict[str, Any]]:
    names = {"a.example": "a.example", "Bücher.Example": "xn--bcher-kva.example", "*.wild.example": "*.wild.example"}
    return {option: issue(authority, name)._asdict() for option, name in names.items()}


@pytest.mark.parametrize(
    ("asked", "recorded", "served"),
    [
        ("a.example", "a.example", "a.example"),
        ("A.EXAMPLE", "a.example", "a.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bücher.example", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("b.wild.example", "b.wild.example", "*.wild.example"),
        ("c.b.wild.example", "c.b.wild.example", "mx.example.com"),
        ("wild.example", "wild.example", "mx.example.com"),
        ("unknown.example", "unknown.example", "mx.example.com"),
        ("127.0.0.1", None, "mx.example.com"),
        (None, None, "mx.example.com"),
    ],
)
def test_a_certificate_for_each_name(
    asked: str | None, recorded: str | None, served: str, hosts: dict[str, Any], pair: Pair
) -> None:
    server = TLSContexts(Options(key=pair.key, cert=pair.cert, sni_options=hosts)).context
    ends = handshake(server, careless(), asked)
    assert ends.subject_names == {served}
    assert tls_info(ends.server).servername == recorded


@pytest.mark.promises("TLS", "A server name that is none chooses no certificate and reaches no callback.")
@pytest.mark.parametrize("sent", [b"../../x", b"a\r\n b: c", b"..", b"a b.examp"])
def test_what_is_no_name_is_neither_recorded_nor_asked_about(sent: bytes, pair: Pair) -> None:
    asked: list[str] = []
    server = TLSContexts(Options(key=pair.key, cert=pair.cert, sni_callback=asked.append)).context
    placeholder = b"q" * len(sent)
    seen: list[str | None] = []
    before = server.sni_callback

    def spy(ssl_object: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int | None:
        seen.append(name)
        answer: int | None = before(ssl_object, name, context)  # type: ignore[misc]
        seen.append(vars(ssl_object)["pillarbox_servername"])
        return answer

    server.sni_callback = spy
    with pytest.raises(ssl.SSLError):  # the changed name does not fit the client's transcript
        handshake(server, careless(), placeholder.decode(), on_the_way=lambda data: data.replace(placeholder, sent))
    assert seen == [sent.decode(), None]
    assert asked == []


def test_only_certificate_and_authorities_change(
    authority: trustme.CA, stranger: trustme.CA, pair: Pair, other: Pair
) -> None:
    entry = {"key": other.key, "cert": other.cert, "ca": stranger.cert_pem.bytes()}
    options = client_options(pair, authority, sni_options={"other.example.com": entry}, minimum_tls_version="TLSv1.3")
    server = TLSContexts(options).context
    theirs = client_of(authority, identity=stranger.issue_cert("client@example.com"))
    mine = client_of(authority, identity=authority.issue_cert("client@example.com"))
    assert tls_info(handshake(server, theirs, "other.example.com").server).authorized
    assert tls_info(handshake(server, mine, "mx.example.com").server).authorized
    for client, name in [
        (mine, "other.example.com"),
        (theirs, "mx.example.com"),
        (client_of(authority), "other.example.com"),
    ]:
        with pytest.raises(ssl.SSLError):
            handshake(server, client, name)
    with pytest.raises(ssl.SSLError):
        handshake(server, at_most(mine, ssl.TLSVersion.TLSv1_2), "other.example.com")


@pytest.mark.promises("TLS", "A certificate that proved a client to one host proves nothing to another.")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_of_one_host_proves_nothing_to_another(
    version: ssl.TLSVersion, authority: trustme.CA, stranger: trustme.CA, pair: Pair, other: Pair
) -> None:
    entry = {"key": other.key, "cert": other.cert, "ca": stranger.cert_pem.bytes()}
    server = TLSContexts(client_options(pair, authority, sni_options={"other.example.com": entry})).context
    mine = client_of(authority, identity=authority.issue_cert("client@example.com"))
    mine.maximum_version = version
    session = handshake(server, mine, "mx.example.com").client.session
    try:
        info = tls_info(handshake(server, mine, "other.example.com", session=session).server)
    except ssl.SSLError:
        return
    assert info.servername == "mx.example.com", "resumed, but as the host that looked at the certificate"


def test_a_host_without_authorities_keeps_the_servers(authority: trustme.CA, pair: Pair, other: Pair) -> None:
    options = client_options(pair, authority, sni_options={"other.example.com": other._asdict()})
    client = client_of(authority, identity=authority.issue_cert("client@example.com"))
    assert tls_info(handshake(TLSContexts(options).context, client, "other.example.com").server).authorized


def test_the_callback_comes_before_the_table(authority: trustme.CA, pair: Pair, other: Pair) -> None:
    chosen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("chosen.example").configure_cert(chosen)
    asked: list[str] = []

    def choose(name: str) -> ssl.SSLContext | None:
        asked.append(name)
        return chosen if name == "chosen.example" else None

    options = Options(
        key=pair.key,
        cert=pair.cert,
        sni_callback=choose,
        sni_options={"chosen.example": other._asdict(), "other.example.com": other._asdict()},
    )
    server = TLSContexts(options).context
    assert handshake(server, careless(), "Chosen.Example").subject_names == {"chosen.example"}
    assert handshake(server, careless(), "other.example.com").subject_names == {"other.example.com"}
    assert handshake(server, careless(), "unknown.example").subject_names == {"mx.example.com"}
    assert handshake(server, careless()).subject_names == {"mx.example.com"}
    assert asked == ["chosen.example", "other.example.com", "unknown.example"]


async def _forgotten() -> None: ...


@pytest.mark.parametrize("answer", [lambda _: 1 / 0, lambda _: "a.pem", lambda _: True, lambda _: _forgotten()])
def test_a_callback_that_fails_is_reported_and_the_default_serves(answer: Any, pair: Pair) -> None:
    problems: list[tuple[type[BaseException], str | None]] = []
    options = Options(key=pair.key, cert=pair.cert, sni_callback=answer)
    contexts = TLSContexts(options, lambda error, name: problems.append((type(error), name)))
    ends = handshake(contexts.context, careless(), "Mx.example.com")
    assert ends.subject_names == {"mx.example.com"}
    assert tls_info(ends.server).servername == "mx.example.com"
    assert problems in ([(ZeroDivisionError, "mx.example.com")], [(TypeError, "mx.example.com")])


def test_a_report_that_fails_ends_no_handshake(pair: Pair) -> None:
    def fail(*_: object) -> None:
        raise ValueError

    options = Options(key=pair.key, cert=pair.cert, sni_callback=fail)
    for on_problem in (fail, None):
        handshake(TLSContexts(options, on_problem).context, careless(), "mx.example.com")


# --- A context of one's own


@pytest.fixture
def own(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("own.example").configure_cert(context)
    return context


def test_a_context_of_ones_own_stays_as_it_is(own: ssl.SSLContext, authority: trustme.CA) -> None:
    before = own.options, own.verify_mode, own.minimum_version, own.num_tickets
    contexts = TLSContexts(Options(ssl_context=own))
    assert contexts.context is own
    assert before == (own.options, own.verify_mode, own.minimum_version, own.num_tickets)
    ends = handshake(own, client_of(authority), "OWN.example")
    assert tls_info(ends.server).servername == "own.example"


def test_its_own_callback_decides_where_no_option_does(own: ssl.SSLContext, other: Pair) -> None:
    seen: list[str | None] = []
    own.sni_callback = lambda _ssl_object, name, _context: seen.append(name)
    for _ in range(2):  # given again it is not asked twice
        contexts = TLSContexts(Options(ssl_context=own, sni_options={"other.example.com": other._asdict()}))
    assert handshake(contexts.context, careless(), "other.example.com").subject_names == {"other.example.com"}
    assert seen == []
    handshake(contexts.context, careless(), "OWN.example")
    handshake(contexts.context, careless())
    assert seen == ["OWN.example", None]


def test_its_own_callback_may_refuse_and_may_fail(own: ssl.SSLContext) -> None:
    answers: list[Any] = [lambda: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME, lambda: 1 / 0]
    own.sni_callback = lambda *_: answers.pop(0)()
    problems: list[BaseException] = []
    contexts = TLSContexts(Options(ssl_context=own), lambda error, _: problems.append(error))
    with pytest.raises(ssl.SSLError):
        handshake(contexts.context, careless(), "own.example")
    handshake(contexts.context, careless(), "own.example")
    assert [type(problem) for problem in problems] == [ZeroDivisionError]


def test_its_authorities_go_along_to_the_hosts(own: ssl.SSLContext, authority: trustme.CA, other: Pair) -> None:
    authority.configure_trust(own)
    own.verify_mode = ssl.CERT_REQUIRED
    TLSContexts(Options(ssl_context=own, sni_options={"other.example.com": other._asdict()}))
    client = client_of(authority, identity=authority.issue_cert("client@example.com"))
    assert tls_info(handshake(own, client, "other.example.com").server).authorized


# --- On the loops


async def _servername_through_the_loop(context: ssl.SSLContext) -> Any:
    seen: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(tls_info(writer.get_extra_info("ssl_object")))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=careless(), server_hostname="a.example")
        info = await seen
        writer.transport.abort()
        return info


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_name_survives_the_loops_own_handshake(loop: str, hosts: dict[str, Any], pair: Pair) -> None:
    context = TLSContexts(Options(key=pair.key, cert=pair.cert, sni_options=hosts)).context
    run = pytest.importorskip(loop).run
    assert run(_servername_through_the_loop(context)).servername == "a.example"
