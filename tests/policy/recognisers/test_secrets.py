"""Secrets in the forms in which they are met: said, quoted, cut off, and longer than anybody thinks."""

import base64
import json
import random

import pytest

from policy.documents import PolicyDocument
from policy.evaluation import STRUCTURED
from policy.policies import Policy, apply_output, output_stream

RULES = Policy(
    PolicyDocument.model_validate(
        {"rules": [{"id": "all", "kinds": STRUCTURED, "action": "redact", "stage": "output"}]}
    )
)
DRAW = random.Random(5)


def drawn(size: int) -> str:
    return base64.urlsafe_b64encode(DRAW.randbytes(size)).decode().rstrip("=").replace("-", "a").replace("_", "b")


def pem(line_end: str) -> str:
    body = base64.b64encode(DRAW.randbytes(300)).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return line_end.join(["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----"])


HEAD = base64.urlsafe_b64encode(json.dumps({"alg": "dir", "enc": "A128GCM"}).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (f"The API key is: {drawn(24)}.", "The API key is: <API_KEY_1>."),
        (f"mein API-Schlüssel: {drawn(24)}", "mein API-Schlüssel: <API_KEY_1>"),
        (f"<apikey>{drawn(24)}</apikey>", "<apikey><API_KEY_1></apikey>"),
        (f"“token={drawn(24)}”", "“token=<API_KEY_1>”"),
        (f"**password={drawn(24)}**", "**password=<API_KEY_1>**"),
        (f"token={drawn(6000)} on", "token=<API_KEY_1> on"),
        (f"token={drawn(12_000)} on", "token=<API_KEY_1> on"),
        (f"jwe {HEAD}..{drawn(12)}.{drawn(40)}.{drawn(16)} on", "jwe <JWT_1> on"),
        (f"cut {HEAD}.{drawn(40)}", "cut <JWT_1>"),
        (f"long {HEAD}.{drawn(9000)}.{drawn(32)} on", "long <JWT_1> on"),
        (f"> {pem(chr(10) + '> ')}\n> ok", "> <PRIVATE_KEY_1>\n> ok"),
        (f"<p>{pem('<br>')}</p>", "<p><PRIVATE_KEY_1></p>"),
        ('s = "' + pem('" +\n"') + '";', 's = "<PRIVATE_KEY_1>";'),
        (f"+{pem(chr(10) + '+')[:300]}", "+<PRIVATE_KEY_1>"),
    ],
)
def test_a_secret_is_found_and_nothing_of_it_is_left(text: str, becomes: str) -> None:
    assert apply_output(RULES, text).text == becomes
    stream = output_stream(RULES)
    assert "".join(stream.feed(text[at : at + 5]) for at in range(0, len(text), 5)) + stream.finish() == becomes


@pytest.mark.parametrize(
    "text",
    [
        f"the header {HEAD}. Then",
        "the token is patience",
        "secret: ${SECRET}",
        "api key is required",
        "if token > MAX_TOKEN_2024Value:",
        "-----BEGIN PRIVATE KEY----- begins one",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert apply_output(RULES, text).text == text
