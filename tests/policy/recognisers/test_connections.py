"""Passwords and keys in connection strings, and behind words of other languages."""

import pytest

from policy.evaluation import Finder

FINDER = Finder()


def secrets_in(text: str) -> set[str]:
    return {text[start:end] for start, end, kind in FINDER.find(text) if kind == "api_key"}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('"Server=db;User ID=ann;Password=sync.river.content.personal;Database=x"', "sync.river.content.personal"),
        ("Host=db;Username=ann;Password=x7uv-p&u8=ht_zb(f$-+6_5)+p0;Database=x", "x7uv-p&u8=ht_zb(f$-+6_5)+p0"),
        ("server=127.0.0.1;user id=root;password=$fg3V*1S@OWqG7;port=3306", "$fg3V*1S@OWqG7"),
        ("Password=turn.into.contents.package;Server=db", "turn.into.contents.package"),
        ("jdbc:sqlserver://db:1433;databaseName=x;user=sa;password=maple.into.river.stone", "maple.into.river.stone"),
        ("Driver={ODBC Driver 18 for SQL Server};Server=tcp:db,1433;Uid=ann;Pwd={p@ss)w0rd};", "p@ss)w0rd"),
        ("Endpoint=sb://x.example.net/;SharedAccessKeyName=Root;SharedAccessKey=a4dEF12=", "a4dEF12="),
        ("AccountName=x;AccountKey=Ab12+d==;EndpointSuffix=core.windows.net", "Ab12+d=="),
        ("host=localhost user=ann password=four.words.with.dots dbname=x", "four.words.with.dots"),
        ("host=localhost password='it s 2 words' dbname=x", "it s 2 words"),
        ("- 默认密码：request.river.pipeline.maple", "request.river.pipeline.maple"),
        ("- 默认密码：`d6hy7b_k8=1c3&a%a7u+iq%ge*m(&%oc#hax$a`", "d6hy7b_k8=1c3&a%a7u+iq%ge*m(&%oc#hax$a"),
        ("- 用户名、密码都是：`river.without.maple.console`", "river.without.maple.console"),
        ('其密码为 `"Below1995$"`：', "Below1995$"),
        ("默认用户名和密码均为 `river.without.maple.console`。", "river.without.maple.console"),
        ("パスワードは ``manualRiver84`` です。", "manualRiver84"),
        ("- 密码：`%w0g@@ii!yb%!v8kd+h&8^_z`", "%w0g@@ii!yb%!v8kd+h&8^_z"),
        ("\nMySQLPassword   maple.into.river.stone\n", "maple.into.river.stone"),
        ("``dialect[+driver]://ann:river4Maple@host/x``", "river4Maple"),
        ("backup --user=root --password=upstream.mailing.river.maple --copy-back", "upstream.mailing.river.maple"),
    ],
)
def test_a_value_is_found_with_all_its_signs(text: str, secret: str) -> None:
    assert secrets_in(text) == {secret}


@pytest.mark.parametrize(
    "text",
    [
        "Server=db;Password=$PASSWORD;Database=x",
        "Server=db;Password=${DB_PASSWORD};Database=x",
        'f"Server={host};Pwd={options.value1};Database={name}"',
        "Server=db;Password=<your-4-words>;Database=x",
        "Server=db;Password=--------;Database=x",
        "Server=db;Password=this.config.values.word;Database=x",
        "var host=t.host;port=t.port;password=t.second;",
        "password=turn.into.contents.package and another word",
        'SQL_AUTH_WITH_PASSWORD = "None"\nMSSQL_AUTH_INTERACTIVE = "x"',
        "the password  of this river.into.maple.stone",
        "use --amazonec2-access-key YOUR_API_KEY --amazonec2-secret-key on the command line",
        "Set `password` to `form.password.label.text` in `settings`",
    ],
)
def test_a_variable_or_a_placeholder_stays(text: str) -> None:
    assert secrets_in(text) == set()
