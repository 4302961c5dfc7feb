"""``pillarbox schema``: what it lets pass and what it refuses, asked of a validator that is not ours."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cli.conftest import Run
from pillarbox import ConfigurationError, Options, deliver, users
from pillarbox.cli.config import effective
from pillarbox.cli.document import TABLES
from pillarbox.cli.schema import document_schema
from pillarbox.deliver import target_class
from pillarbox.users import users_class
from test_docs_examples import PAGES, ROOT, blocks


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = document_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_command_prints_it(run: Run) -> None:
    result = run("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == document_schema()


def test_it_has_every_table_and_every_option() -> None:
    tables = document_schema()["properties"]
    assert set(tables) == set(TABLES)
    assert set(tables["server"]["properties"]) == set(Options.json_schema()["properties"])
    assert set(tables["listen"]["items"]["properties"]) > {"address", "accept", "lmtp"}


def test_each_option_has_its_help_its_unit_and_its_default() -> None:
    options = document_schema()["properties"]["server"]["properties"]
    assert all(option["description"] for option in options.values())
    assert options["socket_timeout"]["description"].endswith(" In seconds.")
    assert (options["socket_timeout"]["default"], options["socket_timeout"]["type"]) == (60.0, "number")
    assert "default" not in options["auth_optional"]  # it depends on whether there are users
    assert "](" not in json.dumps(document_schema())


FILES = [
    *(
        pytest.param(block.text, id=f"{page.name}:{block.line}")
        for page in PAGES
        for block in blocks(page, "toml")
        if "[project" not in block.text  # that is a file of another kind
    ),
    *(
        pytest.param(path.read_text(), id=path.name)
        for folder in ("contrib", "examples")
        for path in sorted((ROOT / folder).rglob("*.toml"))
    ),
]
JWT = "[[users]]\nurl = 'jwt:keys.json'\nissuer = 'https://id.example.com'\naudience = 'mail'"
HOOK = "[[deliver]]\nurl = 'https://hooks.example.com/in'\n"
GOOD = [
    "",
    "[server]\nkey = ['a.pem', 'b.pem']\ncert = ['a.pem', 'b.pem']\nuse_proxy = ['192.0.2.0/24']\nlogger = true",
    "[server]\nmax_allowed_unauthenticated_commands = false\ndeliver_by = 30\nsocket_timeout = 1",
    "[server.sni_options.'example.com']\nkey = 'k'\ncert = 'c'",
    "[[listen]]\naddress = ':25'\naccept = ['*@example.com']\nlmtp = true",
    "[[deliver]]\nurl = 'discard:'\nrecipients = ['a@b']\noptional = true\ntimeout = 5.5",
    "[access]\naccept = ['*@example.com']\n[access.senders]\njoe = ['joe@example.com']",
    JWT,
    HOOK + "format = 'reference'\nfolder = 'mail'\nkey = 'k'\ncert = 'c'",
    HOOK + "format = 'json'",
    "[[deliver]]\nurl = 'smtps://joe@mx.example.com'\npassword = 'x'\nkey = 'k'\ncert = 'c'",
    "[[deliver]]\nurl = 'smtp://joe:x@localhost'",
    "[[deliver]]\nurl = 'lmtp:lmtp'\nusername = 'joe'\npassword_file = 'x'",
]
LACKING = [  # and what the message names
    ("[[listen]]\nlmtp = true", "address"),
    ("[[deliver]]\noptional = true", "url"),
    ("[[users]]\nparallel = 2", "url"),
    (JWT.replace("issuer = 'https://id.example.com'\n", ""), "issuer"),
    (JWT.replace("audience = 'mail'", ""), "audience"),
    (HOOK + "format = 'reference'", "folder"),
    (HOOK + "key = 'k'", "cert"),
    ("[[deliver]]\nurl = 'smtp://mx.example.com'\nkey = 'k'", "cert"),
    ("[[deliver]]\nurl = 'smtp://mx.example.com'\npassword = 'x'", "username"),
    ("[[deliver]]\nurl = 'smtps://mx.example.com'\npassword_file = 'x'", "username"),
    ("[[deliver]]\nurl = 'smtps://mx.example.com'\nusername = 'joe'", "username"),
    ("[[deliver]]\nurl = 'smtp://joe@mx.example.com'", "joe"),
    ("[server]\nkey = 'k'", "cert"),
    ("[server]\ncert = 'k'", "key"),
    ("[server]\nkey_password = 'x'", "key"),
    ("[server.sni_options.'example.com']\ncert = 'c'", "key"),
    ("[server.sni_options.'example.com']\nkey = 'k'", "cert"),
]
WRONG = [
    *(text for text, _ in LACKING),
    "[server.sni_options.'example.com']\nkey = 'k'\ncert = 'c'\nciphers = 'x'",
    "size = 1",
    "[sever]",
    "[server]\nsise = 1",
    "[server]\nsize = 'big'",
    "[server]\nsize = 0",
    "[server]\nsocket_timeout = -1",
    "[server]\nmax_recipients = 1_000_000",
    "[server]\nminimum_tls_version = 'SSLv3'",
    "[server]\non_data = 'x'",
    "[server]\ncert = 5",
    "[server]\nauth_methods = 'PLAIN'",
    "[[server]]\nsize = 1",
    "[listen]\naddress = ':25'",
    "[[listen]]\naddress = 25",
    "[[listen]]\naddress = ':25'\nlmpt = true",
    "[[deliver]]\nurl = 'maildr:x'",
    "[[deliver]]\nurl = 'discard:'\nrecipient = ['a@b']",
    "[[deliver]]\nurl = 'discard:'\nquota = 5",
    "[[deliver]]\nurl = 'discard:'\ntimeout = 'long'",
    "[[deliver]]\nurl = 'discard:'\ntimeout = 0",
    "[access]\naccept = '*@example.com'",
    "[access]\nsenders = ['joe']",
    "[program]\nlog_level = 'loud'",
    "[program]\nloglevel = 'info'",
]


@pytest.mark.parametrize("text", [*FILES, *GOOD])
def test_good_files(validator: jsonschema.Draft7Validator, text: str) -> None:
    assert [error.message for error in validator.iter_errors(tomllib.loads(text))] == []


@pytest.mark.parametrize("text", WRONG)
def test_wrong_files_are_wrong_for_the_program_too(
    validator: jsonschema.Draft7Validator, tmp_path: Path, text: str
) -> None:
    document: dict[str, Any] = tomllib.loads(text)
    assert not validator.is_valid(document)
    file = tmp_path / "mail.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        effective(str(file))


@pytest.mark.parametrize(("text", "named"), LACKING)
def test_what_is_missing_is_named(validator: jsonschema.Draft7Validator, text: str, named: str) -> None:
    """As an editor shows it: not that none of the alternatives fits."""
    [message] = [error.message for error in validator.iter_errors(tomllib.loads(text))]
    assert named in message


@pytest.mark.parametrize(
    ("tables", "scheme", "class_of"),
    [
        *(("deliver", scheme, target_class) for scheme in deliver.known_schemes() if scheme != "python"),
        *(("users", scheme, users_class) for scheme in users.known_schemes() if scheme != "python"),
    ],
)
def test_whatever_a_scheme_requires_is_required(
    validator: jsonschema.Draft7Validator, tables: str, scheme: str, class_of: Any
) -> None:
    required = {name for name, field in class_of(f"{scheme}:").Settings.model_fields.items() if field.is_required()}
    errors = validator.iter_errors({tables: [{"url": f"{scheme}://example.com"}]})
    assert {error.message for error in errors} == {f"{name!r} is a required property" for name in required}


@pytest.mark.parametrize("text", GOOD[4:])
def test_the_program_takes_the_good_ones(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mail.toml"
    file.write_text(text)
    effective(str(file))
