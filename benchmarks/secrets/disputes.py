"""Places in which the rules of ``package_mining`` see an example of a secret, and in which a person sees none.

The rules were written from the halves that were opened, before a locked half is run, and look at the text around the
value only. So they cannot depend on whether the value is found. Figures are given with and without such places.
"""

import re

from headrace.policy.evaluation import Case

_DISPUTES: tuple[tuple[str, str, str], ...] = (
    ("part of a command or a template", r"(?:(?:^|\s)(?:cut|echo|cat|printf|grep|awk)\b[^|]*|\{\{[^}]*)\|\s*$", ""),
    ("the database of users passwd", r"(?:^|\s)(?:passwd|shadow)(?:\s+userPassword)?\s+$", ""),
    ("another field of a line of passwd", r"(?i)^\W*[^\W\d_]{3,16}:(?:parola|password|passwort|hasło):$", ""),
    ("a way to sign in, or a function", r"(?i)(?:active directory|entra id|verif|reset|choose_)[^|]*\|.*$", ""),
    ("another column of the row", r"[\"'`][^\"'`\t|]*(?:secret|password)[\"'`]\s*(?:\t|\|)\s*[`]?$", ""),
    ("a header of a table", r"(?i)\|\s*password\s*\|\s*$", r"^\s*\|\s*$"),
    ("a reference to another store", r"(?i)(?:\burn:[\w:\-]*|\bvault:|\bref\+[\w:/]*)$", ""),
    ("about a secret: policy, length, expiry", r"(?:策略|政策|期限|长度|長さ|管理|对话框|框)\s?(?:：|:|->)\s*$", ""),
    ("the scope of a token", "", r"^`{1,2}\s?(?:スコープ|コマンド|エンドポイント|か |ノード)|^\"\s?トークン"),
    ("two tokens of a grammar", r"(?:または|或者?|および)\s?[\"`]$", ""),
    ("only a part of the example", "", r"^;[^;=]*&gt"),
    ("a comment about a parameter", r"@param\s+\w+\s+$", ""),
    ("a second @", "", r"^@[^/\s@\"']{1,40}@"),
)  # fmt: skip
_COMPILED = tuple((name, re.compile(before), re.compile(after)) for name, before, after in _DISPUTES)


def dispute(case: Case) -> str | None:
    """Return why no secret stands in the place of a case, or None if one does."""
    if not case.marked:
        return None
    ((start, end, _),) = case.marked
    before, after = case.text[:start].rpartition("\n")[2], case.text[end:].partition("\n")[0]
    if "xxx" in case.text[start:end].lower():
        # Drawn from a word of the package that is a placeholder.
        return "a value with xxx"
    return next(
        (
            name
            for name, left, right in _COMPILED
            if left.search(before) is not None and right.search(after) is not None
        ),
        None,
    )
