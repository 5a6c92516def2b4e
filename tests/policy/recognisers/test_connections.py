"""Passwords and keys in connection strings, and behind words of other languages."""

import pytest

from headrace.policy.evaluation import Finder

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
        ("User Id=&lt;User&gt;;Password=+8tBkd0Vw/C3b2dvx;Data Source=&lt;Source&gt;;", "+8tBkd0Vw/C3b2dvx"),
        ("<string>Server=db;Uid=sa;Pwd=B@rry#987&quot;", "B@rry#987"),
        ("UID=ann;PWD=(syl6ryqleo%@84j8h*&7^(5_4cnorsa;", "(syl6ryqleo%@84j8h*&7^(5_4cnorsa"),
        ("UID=MyID;PASSWORD=request.guest.live.true;Debug=1", "request.guest.live.true"),
        ("redis.example:6379,ssl=true,password=q8#x)z!pp1,abortConnect=False", "q8#x)z!pp1"),
        (
            'curl -X DELETE http://x.example/a/long/path/that/goes/on/for/more/than/64/signs -u "ann:dragon12"',
            "dragon12",
        ),
        ("token              OpoqHa4jnJaF0", "OpoqHa4jnJaF0"),
        ("| password              | football1    | before the name |", "football1"),
        ("| AdminPassword         | `alice.notls.version.river`    | of the user |", "alice.notls.version.river"),
        ("son mot de passe est `where.azure.cluster.atom`", "where.azure.cluster.atom"),
        ("- **비밀번호**: ``apheKum2``", "apheKum2"),
        ("パスワードは`A$$1$t%188`です", "A$$1$t%188"),
        ("- 输入密码为`$a-5f3)r$w(i9_ulevn)ln^pyo5q5dgrdt`，然后", "$a-5f3)r$w(i9_ulevn)ln^pyo5q5dgrdt"),
        ("默认用户名/密码为：`lf=55@h*oun+)_55z*y0$$mh&4)us`", "lf=55@h*oun+)_55z*y0$$mh&4)us"),
        ("# 登录密码\nsa.pwd=QzbwbD-Hnm0Iv-LMw55d", "QzbwbD-Hnm0Iv-LMw55d"),
        ("  -P/--password Barry1986?    of the user", "Barry1986?"),
        ('"password": "author.bill.nice.only"', "author.bill.nice.only"),
        ("amqp://ann:form.instead.python.keyfile@x.example:5672", "form.instead.python.keyfile"),
        ("backup --user=root --password=upstream.mailing.river.maple --copy-back", "upstream.mailing.river.maple"),
    ],
)
def test_a_value_is_found_with_all_its_signs(text: str, secret: str) -> None:
    assert secrets_in(text) == {secret}


@pytest.mark.parametrize(
    "text",
    [
        "Server=db;Password=$PASSWORD;Database=x",
        "Server=db;Uid=ann;Password=&lt;your password&gt;;Database=x",
        "http://user:change-it@x.example, then http://user:ENC(...)@x.example and redis://redis:abc@x.example:6379",
        "`sqlserver://x.example`  // username=sa, password=mypass.",
        '"password": os.environ["PASSWORD"],  # nosec:B105',
        'create(db_name="x", user="u1", password1="settings.SECRET_KEY", remark="note")',
        '<user username="both" password="" roles="tomcat,role1"/>',
        "the token              is OpoqHa4jnJaF0",
        "$http = use_$password1",
        "Server=db;Password=${DB_PASSWORD};Database=x",
        'f"Server={host};Pwd={options.value1};Database={name}"',
        "Server=db;Password=<your-4-words>;Database=x",
        "Server=db;Password=--------;Database=x",
        "Server=db;Password=db-changeme-2;Database=x",
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


@pytest.mark.parametrize(
    ("text", "number", "kind"),
    [
        ('"receiver_phone": "18662931839",', "18662931839", "phone"),
        ("receiverMobile = 2053715272", "2053715272", "phone"),
        ("customer_cpf: 52998224725", "52998224725", "national_id"),
    ],
)
def test_the_last_word_of_a_name_announces_a_number(text: str, number: str, kind: str) -> None:
    assert {(text[start:end], kind) for start, end, kind in FINDER.find(text)} == {(number, kind)}


def test_another_word_of_a_name_announces_no_phone_number() -> None:
    assert FINDER.find("full_text: 6723445866") == frozenset()


def test_a_key_of_a_vendor_goes_on_behind_its_signs_and_not_into_a_path() -> None:
    key = "sk_live_a2V5Xz5B5XgP7m7V8xtC5FgjKVbU+Z1yJTzpOiZdz/UJTPUF471CTU3gG5fQahnJRYaxJqyMdH+"
    assert secrets_in(f"secret: '{key}'") == {key}
    path = "https://x.example/sk_live_a2V5Xz5B5XgP7m7V8xtC5FgjKVbU/customers/list"
    assert secrets_in(path) == {"sk_live_a2V5Xz5B5XgP7m7V8xtC5FgjKVbU"}
