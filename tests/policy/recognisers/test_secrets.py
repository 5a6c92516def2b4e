"""Secrets in their usual forms: plain, quoted, truncated, and very long."""

import base64
import json
import random

import pytest

from headrace.policy.documents import PolicyDocument
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_output
from headrace.policy.recognisers.recogniser import STRUCTURED

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
        # Forms of vendors' keys, whatever stands around them.
        (f"see AKIA{'Q3KD7Z' * 2}7Y4M there", "see <API_KEY_1> there"),
        (f"take ghp_{drawn(30)[:36]}, please", "take <API_KEY_1>, please"),
        (f"sk-{drawn(36)} is mine", "<API_KEY_1> is mine"),
        (f"(xoxb-{'1' * 5}24587{'3' * 5}-98{drawn(18)})", "(<API_KEY_1>)"),
        # Behind a word for a secret: in prose, settings, programs, headers and URLs.
        (f"The API key is: {drawn(24)}.", "The API key is: <API_KEY_1>."),
        (f"备用验证密码: {drawn(24)}", "备用验证密码: <API_KEY_1>"),
        (f"<apikey>{drawn(24)}</apikey>", "<apikey><API_KEY_1></apikey>"),
        (f"**password={drawn(24)}**", "**password=<API_KEY_1>**"),
        (f"Authorization: Bearer {drawn(24)}", "Authorization: Bearer <API_KEY_1>"),
        (f"https://x.example/?access_token={drawn(24)}&page=2", "https://x.example/?access_token=<API_KEY_1>&page=2"),
        ('{"db_password": "tr0ub4dor&3"}', '{"db_password": "<API_KEY_1>"}'),
        ("tool --password hunter22 run", "tool --password <API_KEY_1> run"),
        (f"token={drawn(6000)} on", "token=<API_KEY_1> on"),
        (f"token={drawn(12_000)} on", "token=<API_KEY_1> on"),
        ("postgres://shop:tide@lamp7Zq@db/x", "postgres://shop:<API_KEY_1>@db/x"),
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
    stream = RULES.guarded_output(PlaceholderMap())
    assert "".join(stream.feed(text[at : at + 5]) for at in range(0, len(text), 5)) + stream.finish() == becomes


@pytest.mark.parametrize(
    "text",
    [
        f"the header {HEAD}. Then",
        "the token is patience",
        "secret: ${SECRET}",
        "api key is required",
        'password = os.environ["PASSWORD_2"]',
        "apiKey: import.meta.env.VITE_API_KEY2",
        "max_tokens: 16384000000000000000",
        "cache_key = 4ab1cd529e0f7735aa01bb3f9c027e64",
        "tx 0x55dda31edb31a277d5abfc76d2d9aacb9a0a4a4fa7edb3e21f06622dda920c5e",
        "arn:aws:secretsmanager:eu-west-1:148126571682:secret:db-gL5AlQ",
        "login.py,sha256=-28Bru1IXgvvu0P4Fqgrq79TZ-z7dhBYiKJDkzqIwvI,6199",
        "password: str = Field(min_length=12)",
        "postgresql://user:None@host/db",
        'bindPassword="password"\n  authenticationMethod="simple"',
        "-----BEGIN PRIVATE KEY----- begins one",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert apply_output(RULES, text).text == text
