"""What tests give as passwords, tokens and keys is what `tests.leak_watch` looks for.

A secret is known by where it stands in a test: it is called one, a URL has it before the `@`, or a
configuration sets it.  What is made as a test runs, as Hypothesis does, is not looked for.
"""

from __future__ import annotations

import ast
import re
from base64 import b64decode
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.certificates import make, rsa_key
from tests.leak_watch import FORMS
from tests.leaks import search
from tests.secrets_used import MARK

TESTS = Path(__file__).parent
#: Files whose secrets are planted, to be found.
PLANTED = {"leak_watch.py", "leaks.py", "test_leak_watch.py", "test_leaks.py"}
PLANTED |= {"secrets_used.py", "test_secrets_used.py"}
#: The password of RFC 5802 §5 and RFC 7677 §3, and a word of the documentation.
UNSEARCHED = {"pencil", "pass"}
#: What has fewer characters stands for no password, but for a character or a length.
FEWEST = 4

CALLED_SECRET = re.compile(r"(?i)(^|_)(password|passphrase|token|secret)$")
#: In a configuration, as TOML or JSON, and in a URL.
SET = re.compile(r"""\b(?:password|token|secret)\\?["']?\s*[=:]\s*\\?["'](?P<secret>[^"'\\]*)""")
IN_URL = re.compile(r"://[^\s/@:]*:(?P<secret>[^\s/@]+)@")


def secrets_in(source):
    """Yield every secret that stands in a test's source, as text."""
    for node in ast.walk(ast.parse(source)):
        for expression in expressions_in(node):
            yield from texts(expression)
        if isinstance(node, ast.Constant | ast.JoinedStr):
            for text in texts(node):
                for pattern in (SET, IN_URL):
                    yield from (found["secret"] for found in pattern.finditer(text))


def expressions_in(node):
    """Yield what a part of a source uses as a secret."""
    match node:
        case ast.keyword(arg=str(name), value=value) if CALLED_SECRET.search(name):
            yield value
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                if any(map(CALLED_SECRET.search, texts(key))):
                    yield value
        case ast.Assign(targets=[ast.Name(name)], value=value) if CALLED_SECRET.search(name):
            yield value
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            if CALLED_SECRET.search(name):
                yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return))
        case ast.Call(func=ast.Name("Credentials"), args=[_, secret, *_]):
            yield secret
        case ast.Call(func=ast.Attribute(attr="private_pem"), args=[secret]):
            yield secret


def texts(node):
    """Yield the text that an expression is; what is filled in is `{}`."""
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.Constant(bytes(octets)):
            yield octets.decode("latin-1")
        case ast.JoinedStr(values=parts):
            yield "".join("".join(texts(part)) or "{}" for part in parts)
        case ast.BinOp(left=left):
            yield from texts(left)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(TESTS.rglob("*.py")) if path.name not in PLANTED],
    ids=lambda path: path.relative_to(TESTS).as_posix(),
)
def test_a_test_uses_secrets_that_are_looked_for(path):
    assert unknown(path.read_text()) == [], f"put {MARK!r} into them"


def unknown(source):
    return [
        secret
        for secret in secrets_in(source)
        if len(secret) >= FEWEST
        and "{" not in secret
        and secret not in UNSEARCHED
        and not is_found(secret)
    ]


def is_found(text):
    return bool(list(search([("", text)], FORMS)))


@pytest.mark.parametrize(
    "source",
    [
        "f(password='invented')",
        "f(proxy_password=b'invented')",
        "{'username': 'me', 'password': 'invented'}",
        "PROXY_PASSWORD = 'invented'",
        "TOKEN = 'invented' * 9",
        "async def token():\n  return 'invented'",
        "Credentials('me', 'invented')",
        "key.private_pem(b'invented')",
        "'socks5://me:invented@h.test'",
        "f'socks5://me:invented@{host}:{port}'",
        """'auth = {username = "u", password = "invented"}'""",
        """'[defaults.auth]\\npassword = "invented"\\n'""",
        """'{"password": "invented"}'""",
    ],
)
def test_an_invented_secret_is_known_by_where_it_stands(source):
    assert unknown(source)
    assert unknown(source.replace("invented", MARK)) == []


@pytest.mark.parametrize(
    "source", ["f(name='invented')", "'https://h.test/a:b'", "f(password=PASSWORD)", "'a: b@c'"]
)
def test_other_texts_are_no_secrets(source):
    assert unknown(source) == []


@pytest.mark.parametrize(
    "key",
    [
        make("a.test").key_pem,
        make("a.test", key=ec.generate_private_key(ec.SECP384R1())).key_pem,
        make("a.test", key=rsa_key(2048)).key_pem,
        trustme.CA().issue_cert("a.test").private_key_pem.bytes(),
    ],
    ids=["P-256", "P-384", "RSA", "trustme"],
)
def test_a_key_made_on_the_fly_is_known_by_its_head_and_by_its_body(key):
    head, *body, _ = key.decode().splitlines()
    assert is_found(head)
    assert is_found("".join(body))
    assert is_found(b64decode("".join(body)).hex())
    assert is_found(repr(b64decode("".join(body))))
    assert is_found(b64decode("".join(body)).decode("latin-1"))


@pytest.mark.parametrize("passphrase", [None, MARK.encode()])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), rsa_key(2048)])
def test_a_key_is_known_by_its_head_in_every_form(key, form, passphrase):
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    pem = key.private_bytes(Encoding.PEM, form, encryption)
    assert is_found(pem.decode().splitlines()[0])


def test_what_hypothesis_may_take_from_the_engine_is_no_secret():
    """It makes up texts and octets of the constants in the source of what is tested."""
    for path in sorted((TESTS.parent / "engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert not any(map(is_found, texts(node))), f"{path}, line {node.lineno}"


def test_a_certificate_is_no_key():
    for key in (None, rsa_key(2048)):
        assert not is_found(make("a.test", key=key).pem.decode())
