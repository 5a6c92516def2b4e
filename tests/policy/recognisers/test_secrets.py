"""Secrets in their usual forms: plain, quoted, truncated, and very long."""

import base64
import json
import random

import pytest

from headrace.policy.documents import PolicyDocument
from headrace.policy.evaluation import STRUCTURED
from headrace.policy.policies import Policy, apply_output, output_stream

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
        (f"备用验证码: {drawn(24)}", "备用验证码: <API_KEY_1>"),
        (f"гасло: {drawn(12)}", "гасло: <API_KEY_1>"),
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
        ("dsn = app:m4ple_orbit@tcp(db:3306)/shop", "dsn = app:<API_KEY_1>@tcp(db:3306)/shop"),
        # What curl is given is a password, whatever it looks like.
        ("curl --user=ann:dragon https://x.example", "curl --user=ann:<API_KEY_1> https://x.example"),
        ("tool --user=ann:m4ple_orbit7 run", "tool --user=ann:<API_KEY_1> run"),
        (f"wandb login {'3f9c' * 4}{'07be2d81' * 3}", "wandb login <API_KEY_1>"),
        ("x -storepass Maple4264x -keypass Orbit3955x", "x -storepass <API_KEY_1> -keypass <API_KEY_2>"),
        ("requirepass 6B8Kb7cttaAIDE657", "requirepass <API_KEY_1>"),
        ("DBI->connect('dbi:mysql:x', 'shop', 'eXwa#yXSSu')", "DBI->connect('dbi:mysql:x', 'shop', '<API_KEY_1>')"),
        ("gateway_key = 4ab1cd529e0f7735aa01bb3f9c027e64", "gateway_key = <API_KEY_1>"),
        ("captaindata_secret: 0ca0a0eea96bb9e9000ddd23916ca1ed", "captaindata_secret: <API_KEY_1>"),
        ("deviceKey: '0f81ac2e-7d3b-4c55-9a10-6be2f4d01c93',", "deviceKey: '<API_KEY_1>',"),
        ("please use k3x9q2vb7t1wz8r5mh4d as the gateway token", "please use <API_KEY_1> as the gateway token"),
        ("| `PASS` | `Raven3577?` |", "| `PASS` | `<API_KEY_1>` |"),
        ("see x7k2q9wv4tz1b8rm5hd3 there", "see <API_KEY_1> there"),
        ("my password is Wald°4264x", "my password is <API_KEY_1>"),
        # The fewest changes between digits and letters, and a vendor's form without a rare pair.
        ("see nu36xuwwvstrlh6ovps1 there", "see <API_KEY_1> there"),
        ("see ntn_thequickbrownfoxjumpsoverthelazydogandruns there", "see <API_KEY_1> there"),
        # The longest password that no word announces.
        ("see QZ2^Z#cG^S!hGrLNaot#0l3jQia8oo+8t*LUo%Vk there", "see <API_KEY_1> there"),
        ("the token acme_3859a10d43f7d7a2ad8b of it", "the token <API_KEY_1> of it"),
        ("Contraseña nueva: delta_utbdx0", "Contraseña nueva: <API_KEY_1>"),
        ("Clé secrète API:7d1f0ac2b94e", "Clé secrète API:<API_KEY_1>"),
        ("รหัสผ่านใหม่: delta_utbdx0", "รหัสผ่านใหม่: <API_KEY_1>"),
        ("Passwort ändern\ndelta_utbdx0", "Passwort ändern\n<API_KEY_1>"),
        ("Passwort Wert=kJ8sd9fK2lq0Zx7", "Passwort Wert=<API_KEY_1>"),
        ('plivo.Client("base64:kJ8sd9fK2lq0Zx7Wq4")', 'plivo.Client("base64:<API_KEY_1>")'),
        ("the auth token 6c5f92e2-27a1-4c2d-ab1a-2927bc25f828 leaked", "the auth token <API_KEY_1> leaked"),
        ("Personlig API-nyckel: 6c5f92e2-27a1-4c2d-ab1a-2927bc25f828", "Personlig API-nyckel: <API_KEY_1>"),
        ('@Value("Umber-Prairie-3498") String vpnPassword;', '@Value("<API_KEY_1>") String vpnPassword;'),
        ('("deploy", "Perro6512*")', '("deploy", "<API_KEY_1>")'),
        ("put --name /prod/pass-token --value MkAV8a13TFTD", "put --name /prod/pass-token --value <API_KEY_1>"),
        ("Client.configure(:smtp_pass, 'h7biWaH7IbnR')", "Client.configure(:smtp_pass, '<API_KEY_1>')"),
        ("User(name='kim', password='import.tizsm')", "User(name='kim', password='<API_KEY_1>')"),
        (
            'raise Error("--container-registry-password Dbn@m3#9738 --container-registry-username.")',
            'raise Error("--container-registry-password <API_KEY_1> --container-registry-username.")',
        ),
        ("He likes maple4 and\nset password=maple4", "He likes maple4 and\nset password=<API_KEY_1>"),
        ('echo "fp7TNukagkL8OC" | sudo -S ls', 'echo "<API_KEY_1>" | sudo -S ls'),
        # The plural's letter is the next word's.
        ('credentialSecret: "a094cd0e-4870-7c54-6948-9ade7a8a0e2f"', 'credentialSecret: "<API_KEY_1>"'),
        ("PASSWORD:Auth-Token:oVaXV8q50j627BZFa7yo", "PASSWORD:Auth-Token:<API_KEY_1>"),
        ("oracle+cx_oracle://scott:ghb45mx2wf4@myalias", "oracle+cx_oracle://scott:<API_KEY_1>@myalias"),
        ("key password: redis://:liverpool1@host", "key password: redis://:<API_KEY_1>@host"),
        ("postgres://shop:tide@lamp7Zq@db/x", "postgres://shop:<API_KEY_1>@db/x"),
        # The fewest digits that a word for one password announces.
        ("password: 493817", "password: <API_KEY_1>"),
        ("password: 49381", "password: 49381"),
        # In quotes, or behind an option, a value is no variable, whatever it looks like.
        ('password: "chargeNapisany34"', 'password: "<API_KEY_1>"'),
        ("password = 'audit.realms.tiger.maple'", "password = '<API_KEY_1>'"),
        ("tool --password hunter22 run", "tool --password <API_KEY_1> run"),
        ("app password: kqzv wxjp bfgh zmtr on", "app password: <API_KEY_1> on"),
        ('secret: "kQ7 vZ!x1pW9#m2Lb4d"', 'secret: "<API_KEY_1>"'),
        ("初期パスワード：naiChie5", "初期パスワード：<API_KEY_1>"),
        ("Server=h;Password=mwjxFYYG+aP+QOeE;", "Server=h;Password=<API_KEY_1>;"),
        ("Pwd=IdRNJ6-F3YnGN-H;Load Balance Hosts=true", "Pwd=<API_KEY_1>;Load Balance Hosts=true"),
        ("user id=sa;password=x8y@g(^au6o9Zb!!uk;port=1", "user id=sa;password=<API_KEY_1>;port=1"),
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
        "cache_key = 4ab1cd529e0f7735aa01bb3f9c027e64",
        "tx 0x55dda31edb31a277d5abfc76d2d9aacb9a0a4a4fa7edb3e21f06622dda920c5e",
        "htpasswd entry admin:$apr1$fFa9g0EK$UEQgdQyQLhHXKfUAgmbDaB",
        "MLKEM1024P384PublicKey = hpke.MLKEM1024P384PublicKey",
        "arn:aws:secretsmanager:eu-west-1:148126571682:secret:db-gL5AlQ",
        "login.py,sha256=-28Bru1IXgvvu0P4Fqgrq79TZ-z7dhBYiKJDkzqIwvI,6199",
        "Passwords are hashed with argon2id and a salt.",
        "password: str = Field(min_length=12)",
        "see zjPM**Py9ahNQjR9zDpu+A*#Pr+ICw+HtGiQEu15k there",
        '("collation", "utf8mb4_general_ci")',
        "the token 6c5f92e2-27a1-4c2d-ab1a-2927bc25f828 of the request",
        "az login -u 4d065289-6706-4e75-a628-9b8d6d73037c",
        "postgresql://user:None@host/db and amqp://fred:config.password@host",
        "curl -u guest:{api_key} http://localhost:15672/api/users",
        'bindPassword="password"\n  authenticationMethod="simple"',
        "#password='changeme'\n#domain.example.info",
        "with an empty cli-password.\n#\n#allow-loopback-peers2\n",
        "the password is this next word here",
        "the secret key\n#secret-key-file=/path/\n",
        'password = "token"\n    inventory.icinga2_url = "https://localhost"',
        '"password": "form.password.label"',
        "--mysql-native-password=ON\n- --character-set-server=utf8mb4",
        "s.CustomScalingQueueLengthDeduction and s.CustomScalingRunningJobPercentage",
        "calculateToken: calculateSha2Token",
        "-----\n  qKhbwKfBstIs+bMY2Zkp18gnTxKLxoS2tFczGkPLPgizskuemMghRniWaoLcyehA",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert apply_output(RULES, text).text == text
