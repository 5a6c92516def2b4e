"""Passwords and keys in connection strings: ``Server=db;User ID=ann;Password=X;``, ``host=db user=ann password=X``.

The grammar tells that a value is one: another setting of a connection, with the same separator, stands before or behind
it. So the value may look like a name or have signs that no other place allows. ADO.NET, ODBC, JDBC for SQL Server and
Azure's services separate by a semicolon, libpq by a space.
"""

import re

from headrace.policy.recognisers.recogniser import MOST_CONTEXT_CHARS, Kind, Recogniser, Spans
from headrace.policy.recognisers.secret_words import names_secret
from headrace.policy.recognisers.shapes import PLACEHOLDER, is_date, is_name

# Settings of connections, from the manuals of ADO.NET, ODBC's drivers, JDBC, Npgsql, MySqlConnector, Azure and libpq.
_SETTING = (
    r"(?:data ?source|server(?:name)?|host(?:name|addr)?|address|addr|network ?address|port|database(?:name)?"
    r"|db(?:name)?|initial ?catalog|integrated ?security|trusted_connection|persist ?security ?info|user(?:name)?"
    r"|user ?id|uid|login|driver|provider|dsn|encrypt|trust ?server ?certificate|multiple ?active ?result ?sets"
    r"|connect(?:ion)?[ _]?timeout|application ?name|pooling|(?:min|max)(?:imum)? ?pool ?size|ssl ?mode|tls"
    r"|service ?name|sid|schema|search ?path|allow ?user ?variables|allow ?public ?key ?retrieval|char(?:acter ?)?set"
    r"|(?:default ?)?command ?timeout|load ?balance ?hosts|target ?session ?attributes|account ?name"
    r"|account ?endpoint|endpoint|hub ?name|entity ?path|default ?endpoints ?protocol|endpoint ?suffix"
    r"|(?:blob|queue|table|file) ?endpoint|shared ?access ?key ?name|host ?name|device ?id|instrumentation ?key"
    r"|ingestion ?endpoint|authentication|failover ?partner|tenant ?id|client ?id|protocol|virtual ?host|vhost|cluster"
    r"|sslrootcert|sslcert|options|version|abort ?connect|default ?database)"
)
_NAME = (
    r"(?:password|passwd|pwd|shared ?access ?key|shared ?access ?signature|account ?key|access ?key|primary ?key"
    r"|client ?secret|secret ?key|secret)"
)
# The last setting before the name, with its value and the separator. A value in quotes or braces may have a separator.
_BEFORE = re.compile(
    rf"(?i)(?<![\w\-]){_SETTING} ?= ?"
    r"(?:(?:&\w{2,5};|[^;=\n\"'`]){0,128};[ \t]{0,8}(?:\\?\n[ \t]{0,8})?|[^\s=;\"'`]{1,128} )$"
)
# As clients of Redis are given it, with commas: host:6379,ssl=true,password=X.
_BEHIND_COMMA = re.compile(r"[\w.\-\]]:\d{2,5}(?:, ?[A-Za-z]\w{1,24}=[^\s,=;\"'`]{0,64}){0,6}, ?$")
_NEXT_AFTER_COMMA = re.compile(r", ?[A-Za-z]{2,24}=|, ?$|,(?=[\w.\-]{1,64}:\d{2,5})")
# A sign of HTML, which ends the string: Password=X&quot;
_ENTITY = re.compile(r"&(?:lt|gt|quot|apos|nbsp|#\d{2,4})(?:;|$)")
_PARTS = re.compile(r"(?is)[a-z_ ]+? ?= ?(?P<quote>['{]?)(?P<value>.*?)['}]?(?P<next>(?:;\s*|\s)[a-z_ ]+? ?=)?$")
_REFERENCE = re.compile(
    r"\$\w+$|[$@#]?(?:[{<]|\(.*\)$|\[.*\]$)|%\w*%|%[a-z]$|\*{2,}|\.{2,}|@\w+$|(?i:vault|env|file|urn|arn):"
)
# A variable of a program: options.password, this.config.pass.word.
_OF_PROGRAM = re.compile(
    r"(?:this|self|config|opt\w*|settings|process|props|state|window|params|args|req\w*|env|os|c)\."
)
_OF_OBJECT = re.compile(r"(?:this|self|config|settings|process|props|state|window|params|args|env|os|c)\.")
# The name of a variable, as C#, Python and others put one into a text: {password}, {0:X}.
_IN_BRACES = re.compile(r"[\w.:()\[\]\- ]*")
_PHRASE = re.compile(r"[a-z]{3,}(?:[-_.][a-z]{3,}){3,}")
_LEAST = 4


def check_connection(candidate: str, before: str) -> Spans:
    """The value of a password or key, if another setting of a connection stands beside it."""
    found = _PARTS.fullmatch(candidate)
    if found is None:
        return
    value = found["value"]
    if _BEHIND_COMMA.search(before):
        value = _NEXT_AFTER_COMMA.split(value, maxsplit=1)[0]
    elif found["next"] is None:
        if not _BEFORE.search(before):
            return
        value = value.rstrip(".,")
    value = _ENTITY.split(value, maxsplit=1)[0]
    if found["quote"] == "{" and _IN_BRACES.fullmatch(value):
        return
    if _is_written_out(value):
        yield found.start("value"), found.start("value") + len(value)


def _is_written_out(value: str) -> bool:
    """True for a value that is neither a word of an example nor a variable; words alone are left to ``stated``."""
    if len(value) < _LEAST or not any(map(str.isalnum, value)) or _REFERENCE.match(value) or PLACEHOLDER.search(value):
        return False
    if _PHRASE.fullmatch(value) and not _OF_OBJECT.match(value):
        return not names_secret(value)
    if _OF_PROGRAM.match(value):
        return False
    is_number = value.isdigit() or is_date(value)
    return not is_number and not is_name(value) and not value.replace("_", "").replace("-", "").isalpha()


_VALUE = r"(?:'[^'\n;]{3,256}'|\{[^{}\s\"'`]{3,128}\}|[^\s;\"'`<>,][^\s;\"'`<>]{2,256})"
CONNECTION = Recogniser(
    "api_key.connection",
    Kind.API_KEY,
    87,
    rf"\b(?i:{_NAME} ?= ?){_VALUE}(?i:(?:; ?| )\b{_SETTING} ?=)?",
    check_connection,
    context=MOST_CONTEXT_CHARS,
)
