"""Options: what is refused, in which words, and how the reference system's names are taken."""

from __future__ import annotations

import dataclasses
import math
import ssl
import sys
from typing import Any, get_type_hints

import pytest

from pillarbox import ConfigurationError, Options, SMTPServer
from pillarbox.keywords import OptionKeywords
from pillarbox.options import SECTIONS, declarations


class Deaf:
    """No logger, no resolver."""


async def a_coroutine_function(name: str) -> None:
    del name


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"siz": 1}, "unknown option 'siz': did you mean 'size'?"),
    ({"authOptional": True}, "its name here is 'auth_optional'"),
    ({"zzz": 1}, "unknown option 'zzz'"),
    ({"size": "big"}, "option size: must be a whole number or None, not 'big'"),
    ({"size": True}, "option size: must be a whole number"),
    ({"size": 0}, "option size: must be above 0"),
    ({"socket_timeout": "60"}, "option socket_timeout: must be a number"),
    ({"socket_timeout": math.inf}, "option socket_timeout: must be above 0"),
    ({"socket_timeout": 0}, "option socket_timeout: must be above 0"),
    ({"greet_delay": -1}, "option greet_delay: must be 0 or more"),
    ({"secure": 1}, "option secure: must be true or false"),
    ({"max_command_length": 100}, "option max_command_length: must be 512 or more"),
    ({"max_allowed_unauthenticated_commands": True}, "option max_allowed_unauthenticated_commands"),
    ({"name": "a b"}, "option name: must be a host name"),
    ({"banner": "a\r\nb"}, "option banner: must not hold control characters"),
    ({"auth_methods": "PLAIN"}, "option auth_methods: must be a list of strings"),
    ({"auth_methods": ["PLAN"]}, "did you mean 'PLAIN'?"),
    ({"auth_methods": []}, "option auth_methods: must name a mechanism"),
    ({"disabled_commands": ["ATUH"]}, "did you mean 'AUTH'?"),
    ({"use_proxy": ["10.0.0.0/33"]}, "option use_proxy: '10.0.0.0/33' is neither an address nor a network"),
    ({"ignored_hosts": ["localhost"]}, "option ignored_hosts: 'localhost'"),
    ({"bare_newline": "keep"}, "option bare_newline: must be 'normalize', 'reject', 'accept', not 'keep'"),
    ({"minimum_tls_version": "1.2"}, "option minimum_tls_version: must be 'TLSv1'"),
    ({"needs_upgrade": True}, "option needs_upgrade: means nothing without secure"),
    ({"secured": True}, "option secured: means nothing without secure"),
    ({"secure": True, "secured": True, "needs_upgrade": True}, "option needs_upgrade: cannot go with secured"),
    ({"key": "k.pem"}, "option cert: key and cert go together"),
    ({"cert": "c.pem"}, "option key: key and cert go together"),
    ({"key_password": "x"}, "option key_password: has no key"),
    ({"ssl_context": ssl.create_default_context()}, "option ssl_context: is made for clients"),
    ({"ssl_context": Deaf()}, "option ssl_context: must be an ssl.SSLContext, not Deaf"),
    ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "key": "k", "cert": "c"}, "option key: cannot go with"),
    ({"sni_callback": a_coroutine_function}, "option sni_callback: must be a plain function"),
    ({"sni_callback": "x"}, "option sni_callback: must be a function"),
    ({"sni_options": {"a.test": {"key": "k", "cert": "c", "ciphers": "x"}}}, "'a.test' has 'ciphers'"),
    ({"sni_options": {"a.test": {"key": "k"}}}, "'a.test' needs both key and cert"),
    ({"on_data": 5}, "option on_data: must be a function, not int"),
    ({"resolver": Deaf()}, "option resolver: must be an object with a method 'async reverse"),
    ({"logger": Deaf()}, "option logger: must be true, false or a logger; Deaf has no debug()"),
]


@pytest.mark.parametrize(
    ("given", "problem"), WRONG, ids=["-".join([*given, str(number)]) for number, (given, _) in enumerate(WRONG)]
)
def test_a_wrong_option_is_one_clear_error_at_construction(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        SMTPServer(given)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["key", "key_password"])
def test_no_secret_stands_in_an_error_or_a_repr(name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Options.make({name: ["hunter2", 5]})
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in repr(Options(key="hunter2", cert="c", key_password="hunter2"))


def test_the_reference_names_are_taken_as_they_are() -> None:
    options = Options.from_camel_case(
        {
            "name": "mx.test", "banner": "", "size": 0, "socketTimeout": 5000, "closeTimeout": 0,
            "maxClients": math.inf,
            "authMethods": "plain", "hideDSN": False, "hideENHANCEDSTATUSCODES": False, "disabledCommands": [],
            "useProxy": "10.0.0.1", "useXClient": False, "ignoredHosts": "10.0.0.9", "logger": False,
            "maxAllowedUnauthenticatedCommands": False, "passphrase": "", "minVersion": "TLSv1.3", "lmtp": 1,
            "handshakeTimeout": 1500,
        }
    )  # fmt: skip
    assert options == Options(
        name="mx.test", socket_timeout=5.0, auth_methods=["PLAIN"], hide_dsn=False, hide_enhanced_status_codes=False,
        use_proxy=["10.0.0.1"], ignored_hosts=["10.0.0.9"], max_allowed_unauthenticated_commands=False,
        minimum_tls_version="TLSv1.3", lmtp=True, handshake_timeout=1.5,
    )  # fmt: skip


def test_a_misspelt_reference_name_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="unknown option 'soketTimeout': did you mean 'socketTimeout'"):
        Options.from_camel_case({"soketTimeout": 1})


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"maxAllowedUnauthenticatedCommands": math.inf}, "max_allowed_unauthenticated_commands", False),
        ({"useXClient": 1}, "use_xclient", True),
        ({"useXForward": 1}, "use_xforward", True),
        ({"useProxy": 1}, "use_proxy", True),
        ({"logger": 1}, "logger", True),
    ],
)
def test_the_reference_truths(given: dict[str, Any], name: str, value: object) -> None:
    assert getattr(Options.from_camel_case(given), name) is value


@pytest.mark.parametrize("given", [{"socketTimeout": True}, {1: True}, {None: 5}, {b"size": 5}])
def test_what_no_reference_name_takes(given: dict[Any, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Options.from_camel_case(given)


@pytest.mark.parametrize("name", ["socket_timeout", "close_timeout", "handshake_timeout", "proxy_timeout"])
def test_none_is_no_limit(name: str) -> None:
    assert getattr(SMTPServer({name: None}).options, name) is None


REFERENCE_NAMES = """
name banner heloResponse size hideSize lmtp logger component secure needsUpgrade secured key cert ca
ciphers requestCert rejectUnauthorized sniOptions SNICallback hideSTARTTLS allowInsecureAuth
authMethods authOptional authRequiredMessage maxAllowedUnauthenticatedCommands disabledCommands
hidePIPELINING hide8BITMIME hideSMTPUTF8 hideENHANCEDSTATUSCODES hideDSN hideREQUIRETLS
socketTimeout closeTimeout maxClients disableReverseLookup resolver useProxy ignoredHosts useXClient
useXForward onConnect onSecure onAuth onMailFrom onRcptTo onData onClose maxCommandLength
lenientAddressParsing
"""


def test_every_reference_option_has_its_place() -> None:
    names = set(REFERENCE_NAMES.split())
    assert names <= {declaration.reference for declaration in declarations().values()}


def test_the_typed_keywords_are_the_options() -> None:
    # compared as written: both modules name the same types
    assert OptionKeywords.__annotations__.keys() == Options.__annotations__.keys()
    written = {name: getattr(hint, "__forward_arg__", hint) for name, hint in OptionKeywords.__annotations__.items()}
    assert written == Options.__annotations__
    assert get_type_hints(OptionKeywords)


def test_every_option_says_what_it_does() -> None:
    for field in dataclasses.fields(Options):
        declaration = declarations()[field.name]
        assert declaration.section in SECTIONS
        assert declaration.help.endswith("."), field.name


def test_the_schema_has_every_option_that_a_file_can_hold() -> None:
    schema = Options.json_schema()
    in_file = {name for name, declaration in declarations().items() if not declaration.in_code_only}
    assert set(schema["properties"]) == in_file
    assert schema["additionalProperties"] is False
    assert schema["properties"]["socket_timeout"]["default"] == 60.0
    assert "default" not in schema["properties"]["name"]


def test_options_are_replaced_and_checked_again() -> None:
    options = Options(size=5)
    assert options.replace(size=6).size == 6
    assert options.replace(use_proxy=["*"]).replace(size=7).use_proxy == ("*",)
    with pytest.raises(ConfigurationError, match="option size"):
        options.replace(size=-1)
    with pytest.raises(ConfigurationError, match="did you mean 'size'"):
        options.replace(siize=1)


def test_a_mapping_or_options_may_come_first() -> None:
    assert SMTPServer({"size": 5}, banner="x").options.size == 5
    assert SMTPServer(Options(size=5), size=6).options.size == 6
    with pytest.raises(ConfigurationError, match="options must be Options or a mapping, not int"):
        SMTPServer(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("throttled.rate_limiter", {"rates_over_all": {"messages": "1/s"}}, "rates"),
        ("redis", {"rate_store": "redis://localhost/0"}, "redis"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    module: str, options: dict[str, Any], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=f"needs the extra '{extra}': pip install 'pillarbox\\[{extra}\\]'"):
        Options(**options)
