"""``jwt:KEYS``: tokens that are signed with real keys, and key sets from a file and from a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from pillarbox import ConfigurationError
from pillarbox.users import keysets, users_from_url
from support import ca, recorded
from users.endpoint import endpoint
from users.logins import LATER, WELCOME, WRONG, asking, bearer, offered

ISSUER, AUDIENCE = "https://id.example.com", "mail"
SETTINGS = {"issuer": ISSUER, "audience": AUDIENCE}

KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
KEYS |= {"PS512": KEYS["RS256"], "RS512": KEYS["RS256"]}
STRANGER = ec.generate_private_key(ec.SECP256R1())


def jwk(algorithm: str, key: Any = None, **more: Any) -> dict[str, Any]:
    """Return the public half of a key as it stands in a key set."""
    public = (key or KEYS[algorithm]).public_key()
    made: Any = get_default_algorithms()[algorithm]
    return {**made.to_jwk(public, as_dict=True), "kid": algorithm, **more}


def key_set(*algorithms: str) -> dict[str, Any]:
    return {"keys": [jwk(algorithm) for algorithm in algorithms]}


def token(algorithm: str = "ES256", *, key: Any = None, kid: str | None = "", **claims: Any) -> str:
    """Return a token for ann; a claim that is None is left out."""
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 300} | claims
    headers = {} if kid is None else {"kid": kid or algorithm}
    given = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(given, key or KEYS[algorithm], algorithm=algorithm, headers=headers)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(key_set("RS256", "ES256", "ES384", "EdDSA")))
    return path


def backend(file: Path, **settings: Any) -> Any:
    return users_from_url(f"jwt:{file}", SETTINGS | settings)


INVALID = '{"status": "invalid_token"}'


class TestTokens:
    @pytest.mark.parametrize("method", ["OAUTHBEARER", "XOAUTH2"])
    @pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "EdDSA"])
    async def test_a_good_one(self, file: Path, algorithm: str, method: str) -> None:
        seen: list[Any] = []
        async with asking(backend(file), on_mail_from=lambda _, session: seen.append(session.user)) as served:
            assert await offered(served) == ["OAUTHBEARER", "XOAUTH2"]
            assert await bearer(served, token(algorithm), "ann", method) == ("", WELCOME)
            await served.clients[-1].say("MAIL FROM:<a@example.com>")
        assert seen == ["ann"]

    async def test_oauthbearer_needs_no_name(self, file: Path) -> None:
        async with asking(backend(file)) as served:
            assert await bearer(served, token()) == ("", WELCOME)

    @pytest.mark.parametrize("algorithm", ["PS512", "RS512"])
    async def test_a_key_serves_all_algorithms_of_its_type(self, file: Path, algorithm: str) -> None:
        async with asking(backend(file)) as served:
            assert await bearer(served, token(algorithm, kid="RS256")) == ("", WELCOME)

    async def test_a_token_that_names_no_key(self, file: Path) -> None:
        async with asking(backend(file)) as served:
            assert await bearer(served, token(kid=None)) == ("", WELCOME)
            file.write_text(json.dumps({"keys": [jwk("ES256"), jwk("ES256", STRANGER, kid="other")]}))
            assert await bearer(served, token(kid=None)) == (INVALID, WRONG)  # which of the two?

    @pytest.mark.parametrize(
        "claims",
        [
            {"exp": time.time() - 3600},
            {"exp": None},
            {"nbf": time.time() + 3600},
            {"iat": time.time() + 3600},
            {"aud": "another"},
            {"aud": ["another", "third"]},
            {"aud": None},
            {"sub": None},
            {"sub": ""},
            {"sub": 5},
            {"sub": "an\nn"},
            {"key": STRANGER},
            {"kid": "unknown"},
            {"algorithm": "ES384", "kid": "ES256"},
        ],
    )
    @pytest.mark.promises(
        "Users", "A token counts only if issuer, audience, time and signature are right; a public key signs nothing."
    )
    async def test_a_bad_one(self, file: Path, claims: dict[str, Any]) -> None:
        async with asking(backend(file)) as served:
            assert await bearer(served, encoded(claims)) == (INVALID, WRONG)
            told = '{"status": "401", "schemes": "bearer", "scope": "mail"}'
            assert await bearer(served, encoded(claims), "ann", "XOAUTH2") == (told, WRONG)

    async def test_one_of_another_issuer_is_none_of_ours(self, file: Path) -> None:
        """So another backend may know it; and it is told as the library does it."""
        async with asking(backend(file), backend(file, issuer="https://other.example")) as served:
            assert await bearer(served, token(iss="https://other.example")) == ("", WELCOME)
            assert await bearer(served, token()) == ("", WELCOME)
            for strange in (token(iss="https://third.example"), token(iss=None), "no-jwt", "a.b.c", *DEEP):
                assert await bearer(served, strange) == (INVALID, WRONG)

    @pytest.mark.parametrize("method", ["OAUTHBEARER", "XOAUTH2"])
    async def test_nobody_uses_another_s_token(self, file: Path, method: str) -> None:
        async with asking(backend(file)) as served:
            assert (await bearer(served, token(), "bob", method))[1] == WRONG
            assert (await bearer(served, token(), "Ann", method))[1] == WRONG

    async def test_some_clock_may_be_wrong(self, file: Path) -> None:
        async with asking(backend(file, leeway=60.0)) as served:
            assert await bearer(served, token(exp=time.time() - 30, nbf=time.time() + 30)) == ("", WELCOME)
        async with asking(backend(file, leeway=0.0)) as served:
            assert await bearer(served, token(exp=time.time() - 30)) == (INVALID, WRONG)

    async def test_several_audiences(self, file: Path) -> None:
        async with asking(backend(file, audience=["mail", "smtp"])) as served:
            assert await bearer(served, token(aud=["web", "smtp"])) == ("", WELCOME)
            assert await bearer(served, token(aud="web")) == (INVALID, WRONG)

    async def test_another_claim_names_the_user(self, file: Path) -> None:
        async with asking(backend(file, user_claim="email")) as served:
            named = {"email": "ann@example.com", "sub": "7f3a"}
            assert await bearer(served, token(**named), "ann@example.com") == ("", WELCOME)
            assert await bearer(served, token(**named, email_verified=True)) == ("", WELCOME)
            for unverified in (False, "false"):
                assert await bearer(served, token(**named, email_verified=unverified)) == (INVALID, WRONG)

    @pytest.mark.parametrize(
        ("claims", "good"),
        [
            ({"scope": "openid mail.send"}, True),
            ({"scp": ["mail.send", "x"]}, True),
            ({"scp": "mail.send"}, True),
            ({"scope": "openid"}, False),
            ({"scope": "mail.sendall"}, False),
            ({"scope": 5}, False),
            ({}, False),
        ],
    )
    async def test_scopes(self, file: Path, claims: dict[str, Any], good: bool) -> None:
        async with asking(backend(file, scopes=["mail.send"])) as served:
            refused = ('{"status": "insufficient_scope", "scope": "mail.send"}', WRONG)
            assert await bearer(served, token(**claims)) == (("", WELCOME) if good else refused)
            told = '{"status": "403", "schemes": "bearer", "scope": "mail.send"}'
            assert await bearer(served, token(**claims), "ann", "XOAUTH2") == (("", WELCOME) if good else (told, WRONG))


_deep = base64.urlsafe_b64encode(b"[" * 4000).decode()
_head = base64.urlsafe_b64encode(b'{"alg":"ES256"}').decode().rstrip("=")
DEEP = (f"{_deep}.e30.x", f"{_head}.{_deep}.x", f"{_head}.W10.x")  # what no reader of JSON likes, and no claims


def encoded(claims: dict[str, Any]) -> str:
    return token(**claims)


class TestAlgorithms:
    @pytest.mark.promises(
        "Users", "A token counts only if issuer, audience, time and signature are right; a public key signs nothing."
    )
    async def test_none_is_none(self, file: Path) -> None:
        unsigned = jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 300}, "", "none")
        async with asking(backend(file)) as served:
            assert await bearer(served, unsigned) == (INVALID, WRONG)
            head, body, _ = token().split(".")
            assert await bearer(served, f"{head}.{body}.") == (INVALID, WRONG)

    @pytest.mark.promises(
        "Users", "A token counts only if issuer, audience, time and signature are right; a public key signs nothing."
    )
    async def test_a_public_key_is_no_secret(self, file: Path) -> None:
        """Signed by HMAC with the public key, which everybody has."""
        public = jwk("RS256")
        head, body, _ = token("RS256").split(".")
        head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"RS256"}').decode().rstrip("=")
        for secret in (json.dumps(public), public["n"]):
            made = hmac.digest(secret.encode(), f"{head}.{body}".encode(), "sha256")
            forged = f"{head}.{body}.{base64.urlsafe_b64encode(made).decode().rstrip('=')}"
            for settings in ({}, {"algorithms": ["HS256", "RS256"]}):
                async with asking(backend(file, **settings)) as served:
                    assert await bearer(served, forged) == (INVALID, WRONG)

    async def test_shared_secrets_must_be_asked_for(self, file: Path) -> None:
        secret = b"0123456789abcdef0123456789abcdef"
        key = {"kty": "oct", "kid": "HS256", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}
        file.write_text(json.dumps({"keys": [key]}))
        async with asking(backend(file)) as served:
            assert await bearer(served, token("HS256", key=secret)) == (INVALID, WRONG)
        async with asking(backend(file, algorithms=["HS256"])) as served:
            assert await bearer(served, token("HS256", key=secret)) == ("", WELCOME)

    async def test_fewer_algorithms(self, file: Path) -> None:
        async with asking(backend(file, algorithms=["ES256"])) as served:
            assert await bearer(served, token("ES256")) == ("", WELCOME)
            assert await bearer(served, token("RS256")) == (INVALID, WRONG)

    @pytest.mark.parametrize(
        "more",
        [{"use": "enc"}, {"alg": "RS256"}, {"x": "AAAA"}],
    )
    async def test_a_key_that_is_for_something_else(self, file: Path, more: dict[str, Any]) -> None:
        file.write_text(json.dumps({"keys": [jwk("ES256", **more)]}))
        async with asking(backend(file)) as served:
            assert await bearer(served, token()) == (INVALID, WRONG)

    @pytest.mark.filterwarnings("ignore:The RSA key:UserWarning")
    async def test_a_key_that_is_too_short(self, file: Path) -> None:
        short = rsa.generate_private_key(65537, 1024)
        file.write_text(json.dumps({"keys": [jwk("RS256", short)]}))
        async with asking(backend(file)) as served:
            assert await bearer(served, token("RS256", key=short)) == (INVALID, WRONG)


class TestFetched:
    async def test_a_key_set_is_fetched_once(self) -> None:
        async with (
            endpoint(lambda _: key_set("ES256", "RS256")) as http,
            asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served,
        ):
            for algorithm in ("ES256", "RS256", "ES256"):
                assert await bearer(served, token(algorithm)) == ("", WELCOME)
        assert len(http.headers) == 1

    async def test_a_new_key_is_fetched_and_strange_ones_are_not_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        published = ["ES256"]
        async with (
            endpoint(lambda _: key_set(*published)) as http,
            asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served,
        ):
            published.append("RS256")
            # At once after the last request there is no other, however many ask.
            answers = await asyncio.gather(*(bearer(served, token("RS256")) for _ in range(5)))
            assert answers == [(INVALID, WRONG)] * 5
            assert len(http.headers) == 1
            monkeypatch.setattr(keysets, "PAUSE", 0.0)
            assert await bearer(served, token("RS256")) == ("", WELCOME)
            assert len(http.headers) == 2
            monkeypatch.undo()
            await asyncio.gather(*(bearer(served, token(kid=f"strange{n}")) for n in range(5)))
            assert len(http.headers) == 2

    async def test_many_at_once_are_one_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        published: list[str] = []
        release = asyncio.Event()

        async def answer(_: Any) -> Any:
            if published:
                await release.wait()
            return key_set(*published) if published else web.Response(status=503)

        async with endpoint(answer) as http, asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served:
            monkeypatch.setattr(keysets, "PAUSE", 0.0)
            published.append("ES256")
            logins = asyncio.gather(*(bearer(served, token()) for _ in range(10)))
            while len(http.headers) < 2:
                await asyncio.sleep(0.01)
            monkeypatch.undo()
            release.set()
            assert await logins == [("", WELCOME)] * 10
            assert len(http.headers) == 2

    async def test_old_keys_serve_while_new_ones_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: list[Any] = [key_set("ES256")]
        async with (
            endpoint(lambda _: answers[0]) as http,
            asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served,
        ):
            monkeypatch.setattr(keysets, "PAUSE", 0.0)
            monkeypatch.setattr(keysets, "LIFETIME", 0.0)
            answers[0] = {"keys": []}
            with recorded(logging.WARNING) as records:
                assert await bearer(served, token()) == ("", WELCOME)
            assert "the old keys are used" in records[0].getMessage()
            monkeypatch.setattr(keysets, "LONGEST_LIFE", 0.0)  # but not for ever: they may have been taken back
            assert await bearer(served, token()) == ("", LATER)
            answers[0] = key_set("ES256")
            monkeypatch.setattr(keysets, "LONGEST_LIFE", 60.0)
            assert await bearer(served, token()) == ("", WELCOME)

    async def test_a_key_that_only_the_set_that_cannot_be_had_may_hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The issuer signs with its next key, and its key set is away: the token is not wrong for all that is known."""
        answers: list[Any] = [key_set("ES256")]
        async with (
            endpoint(lambda _: answers[0]) as http,
            asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served,
        ):
            monkeypatch.setattr(keysets, "PAUSE", 0.0)
            answers[0] = {"keys": []}
            assert await bearer(served, token("RS256")) == ("", LATER)
            assert await bearer(served, token()) == ("", WELCOME)
            answers[0] = key_set("ES256", "RS256")
            assert await bearer(served, token("RS256")) == ("", WELCOME)
            assert await bearer(served, token(kid="strange")) == (INVALID, WRONG)

    async def test_a_key_that_was_taken_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        published = ["ES256", "RS256"]
        async with (
            endpoint(lambda _: key_set(*published)) as http,
            asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served,
        ):
            assert await bearer(served, token()) == ("", WELCOME)
            published.remove("ES256")
            monkeypatch.setattr(keysets, "PAUSE", 0.0)
            monkeypatch.setattr(keysets, "LIFETIME", 0.0)
            assert await bearer(served, token()) == (INVALID, WRONG)

    @pytest.mark.parametrize(
        "answer",
        [web.Response, lambda: web.Response(status=500), lambda: {"keys": "none"}, lambda: {"keys": ["x" * 2_000_000]}],
        ids=["empty", "500", "no set", "endless"],
    )
    async def test_an_issuer_that_is_down_keeps_nobody_from_starting(self, answer: Any) -> None:
        with recorded(logging.WARNING) as records:
            async with (
                endpoint(lambda _: answer()) as http,
                asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served,
            ):
                assert await bearer(served, token()) == ("", LATER)
        assert "no keys yet, nobody can log in with a token: it" in records[0].getMessage()

    async def test_tls_is_verified(self, tmp_path: Path) -> None:
        ca("server").cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with endpoint(lambda _: key_set("ES256"), tls=True) as http:
            async with asking(users_from_url(f"jwt:{http.url}", SETTINGS)) as served:
                assert await bearer(served, token()) == ("", LATER)
            trusting = SETTINGS | {"ca": str(tmp_path / "ca.pem")}
            async with asking(users_from_url(f"jwt:{http.url}", trusting)) as served:
                assert await bearer(served, token()) == ("", WELCOME)


async def test_a_file_is_read_again_when_it_changes(file: Path) -> None:
    file.write_text(json.dumps(key_set("RS256")))
    async with asking(backend(file)) as served:
        assert await bearer(served, token()) == (INVALID, WRONG)
        file.write_text(json.dumps(key_set("ES256")))
        assert await bearer(served, token()) == ("", WELCOME)
        file.write_text("half a fi")
        assert await bearer(served, token()) == ("", LATER)
        file.unlink()
        assert await bearer(served, token()) == ("", LATER)


@pytest.mark.promises("Users", "No password, token or key stands in a log.")
async def test_no_token_reaches_a_log(file: Path) -> None:
    good, bad = token(), token(aud="another")
    with recorded(logging.DEBUG) as records:
        async with asking(backend(file)) as served:
            await bearer(served, good)
            await bearer(served, bad)
    text = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in records)
    assert "token refused: InvalidAudienceError" in text
    for secret in (good, bad):
        for part in secret.split(".")[1:]:
            assert part not in text


class TestStart:
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"issuer": ISSUER}, "audience is missing"),
            ({"audience": AUDIENCE}, "issuer is missing"),
            (SETTINGS | {"algorithms": ["none"]}, "'none' is none of RS256"),
            (SETTINGS | {"algorithms": []}, "algorithms"),
            (SETTINGS | {"audience": []}, "audience"),
            (SETTINGS | {"audience": ""}, "audience"),
            (SETTINGS | {"leeway": -1}, "leeway"),
            (SETTINGS | {"user_claims": "email"}, "did you mean 'user_claim'"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            users_from_url("jwt:keys.json", settings)

    @pytest.mark.parametrize("url", ["jwt:", "jwt:https://", "jwt:https://a:b@host/keys"])
    def test_urls(self, url: str) -> None:
        with pytest.raises(ConfigurationError):
            users_from_url(url, SETTINGS)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "no such file"),
            ("", "it is no JSON"),
            ("[]", "it is no key set"),
            ('{"keys": []}', "it is no key set"),
        ],
    )
    async def test_files(self, tmp_path: Path, content: str | None, says: str) -> None:
        file = tmp_path / "keys.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigurationError, match=says):
            await backend(file).start()

    async def test_without_the_library(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "jwt", None)
        with pytest.raises(ConfigurationError, match=r"pip install 'pillarbox\[jwt\]'"):
            await backend(file).start()
