"""The checks of secrets alone: which part of a candidate is the secret, behind which text."""

import base64
import json
from collections.abc import Callable

import pytest

from headrace.policy.recognisers.commands import check_command_password
from headrace.policy.recognisers.connections import check_connection
from headrace.policy.recognisers.recogniser import Spans
from headrace.policy.recognisers.secrets import check_jwt, check_url_password, check_user_password
from headrace.policy.recognisers.unannounced import check_generated, check_random, check_url_path
from tests.policy.recognisers.test_checks import found

Check = Callable[[str, str], Spans]


def header(**fields: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


COMMANDS = [
    ("mysql -u root ", "-p", "Xk29plo7"),
    ("sshpass ", "-p ", "Xk29plo7"),
    ("redis-cli ", "-a ", "hunter2x"),
    ("ldapsearch ", "-w ", "hunter2x"),
    ("plink ", "-pw ", "hunter2x"),
    ("smbclient ", "-U ann%", "Secret77"),
    ("net use x ", "/user:ann ", "Xk29plo7"),
    ("docker run ", "-p ", "8080:80", None),
    ("mysql ", "-p", "ass", None),
    ("mysql ", "-p", "$PW", None),
    ("x -", "-p", "Xk29plo7", None),
    ("ls ", "-a ", "hunter2x", None),
    ("foo ", "/user:ann ", "Xk29plo7", None),
    ("sqlcmd | ", "-P ", "hunter2x", None),
]
USERS = [
    ("curl ", "-u kim:", "Xk29!plo9"),
    ("curl ", "-u kim:", "hello"),
    ("", "-u kim:", "Xk29!plo9"),
    ("", '-u "kim:', "Xk29!plo9"),
    ("http x ", "-a kim:", "Xk29!plo9"),
    ("", "-u kim:", "hello", None),
    ("curl ", "-u kim:", "$SECRET", None),
    ("", "-a kim:", "Xk29!plo9", None),
]
URLS = [
    ("", "redis://:", "p4ssw0rd", "@"),
    ("", "http://kim:", "p4ss", "@"),
    ("", "https://", "pT4vZx91LqWk7Ghd2MbR", "@"),
    ("", "ann:", "m4ple_orbit", "@tcp("),
    ("", "dom/ann:", "Maple#4264", "@"),
    ("", "sqlplus scott/", "tiger", "@"),
    ("", "http://kim:", "none@", None),
    ("", "http://kim:", "$PW@", None),
    ("", "amqp://a:", "changeme@", None),
    ("", "jdbc://host:", "1433;x@", None),
    ("", "https://", "someordinaryname@", None),
    ("", "dom/ann:", "maple@", None),
]
CONNECTIONS = [
    ("Server=h;", "Password=", "Xk29plo", ";Database="),
    ("host=db ", "password=", "Xk29plo", " user="),
    ("Server=h;", "Password=", "Xk29plo"),
    ("Server=h;", "Pwd={", "ab#c9", "}"),
    ("Server=h;", "Password=", "river.into.maple.stone"),
    ("", "Password=", "Xk29plo", None),
    ("Server=h;", "Pwd=", "{abc}", None),
    ("Server=h;", "Password=", "hello", None),
    ("Server=h;", "Password=", "hel", None),
    ("Server=h;", "Password=", "config.into.maple.stone", None),
]


DRAWN = "pT4vZx91LqWk7Ghd2MbR"
MADE = "qT7#vZ!x91LpWk"
GENERATED = [
    ("", "", MADE),
    ("", "", MADE, "."),
    ("", "", "kQ7vZx-1pW9m2-Lb4dRt"),
    ("", "", "q#T!7$v%Z^x&9*"),
    *(("", "", value, None) for value in ("qT7vZx91LpWk", "qt7#vz!x91lpwk", "Maple#4264river", "kq7vzx-1pw9m2-lb4drt")),
    *(("", "", value, None) for value in ("qT7#" * 11, "71#92!83Zq4567", f"your-{MADE}", "qT7&amp;vZ!x91LpWk")),
    *((before, "", MADE, None) for before in ("sha256: ", "/", "=", "&", "%", ".", ":")),
]
RANDOM = [
    ("", "", DRAWN),
    ("", "", DRAWN, "--"),
    *((before, "", DRAWN, None) for before in ("sha256:", "commit ", "https://a.example/x/", "https://a.example/x?k=")),
    *(("", prefix, DRAWN, None) for prefix in ("chatcmpl-", "user/", "MII")),
    ("", "", DRAWN[:-1], None),
]
PATHS = [
    ("", "https://a.example/reset-password/", DRAWN),
    ("", "https://a.example/invite/", DRAWN, "."),
    ("", "https://mainnet.infura.io/v3/", "3f7a91c05b2e4d869a1fc04e7b62d815"),
    ("", "https://a.example/articles/", DRAWN, None),
    ("", "https://a.example/reset/", "3f7a91c0-5b2e-4d86-9a1f-c04e7b62d815", None),
    ("", "https://a.example/invite/", "hello-world", None),
    # A UUID that looks drawn at random, as one of a hundred does, is a key of a known host, and elsewhere only an id.
    ("", "https://x.quiknode.pro/", "aa2ca1af-6a10-1b75-a77f-6cbdcc22af58"),
    ("", "https://a.example/reset/", "aa2ca1af-6a10-1b75-a77f-6cbdcc22af58", None),
]


@pytest.mark.parametrize(
    ("check", "case"),
    [
        *((check_command_password, case) for case in COMMANDS),
        *((check_user_password, case) for case in USERS),
        *((check_url_password, case) for case in URLS),
        *((check_connection, case) for case in CONNECTIONS),
        *((check_generated, case) for case in GENERATED),
        *((check_random, case) for case in RANDOM),
        *((check_url_path, case) for case in PATHS),
    ],
)
def test_the_secret_of_a_candidate(check: Check, case: tuple[str | None, ...]) -> None:
    """Each case: the text before, then the parts of the candidate. The second is the secret; None: there is none."""
    before, *parts = case
    is_secret = None not in parts
    candidate = "".join(part or "" for part in parts)
    assert found(check, candidate, before or "") == ([parts[1]] if is_secret else [])


@pytest.mark.parametrize(
    ("token", "is_found"),
    [
        (f"{header(alg='x')}.abc.d", True),
        (f"{header(typ='x')}.abc.d", True),
        (f"{header(kid='x')}.abc.d", False),
        # Cut off, it has enough of its claims.
        (f"{header(alg='x')}.{'a' * 16}", True),
        (f"{header(alg='x')}.{'a' * 15}", False),
        ("eyJhbGci.abc.d", False),
    ],
)
def test_a_web_token_has_a_header_with_an_algorithm(token: str, is_found: bool) -> None:
    assert found(check_jwt, token) == ([token] if is_found else [])
    if is_found:
        assert found(check_jwt, f"{token}.e.f.") == [f"{token}.e.f"]
