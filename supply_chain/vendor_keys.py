"""``python -m supply_chain.vendor_keys gitleaks.toml LICENSE COMMIT``: import the key formats of vendors from gitleaks.

Writes ``policy/data/vendor_keys.json``. ``gitleaks.toml`` is ``config/gitleaks.toml`` of a checkout of gitleaks at
COMMIT, LICENSE the file of that name beside it. For each usable rule, the expression of the key is kept in the dialect
of ``policy.text.patterns``: a key that identifies its vendor, or one that counts only after the name of the vendor.
Other rules are listed on stderr.
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from headrace.policy.text.patterns import BadPattern, parse_pattern

TARGET = Path(__file__).parents[1] / "policy/data/vendor_keys.json"

# Formats that are too weak alone, already built in, or no keys because other recognisers find them.
_LEFT_OUT = frozenset(
    [
        *("generic-api-key", "curl-auth-header", "curl-auth-user", "jwt", "jwt-base64", "private-key", "pkcs12-file"),
        *("kubernetes-secret-yaml", "nuget-config-password", "hashicorp-tf-password", "sidekiq-sensitive-url"),
        *("sourcegraph-access-token", "freemius-secret-key", "facebook-access-token", "microsoft-teams-webhook"),
        "slack-webhook-url",
    ]
)
_NAMED = re.compile(
    r"^(?:\(\?i\))?\[\\w\.-\]\{0,50\}\?(?:\(\?i:\[\\w\.-\]\{0,50\}\?)?"
    r"\(\?:(?P<names>.*?)\)\(\?:\[ \\t\\w\.-\]\{0,20\}\)"
    r"\[\\s'\"\]\{0,3\}\)?\(\?:=\|>\|:\{1,3\}=\|\\\|\\\|\|:\|=>\|\\\?=\|,\)\[\\x60'\"\\s=\]\{0,5\}\((?P<value>.*?)\)"
    r"\(\?:\[\\x60'\"\\s;\]\|\\\\\[nr\]\|\$\)(?P<more>\|.*)?$"
)
_AFTER = re.compile(r"\(\?:\[\\x60'\"\\s;\]\|\\\\\[nr\]\|\$(?:\|\\b)?\)|\(\?:\[\^[^\]]*\]\|\\z\)|\\b$")
_BEFORE = re.compile(r"^(?:\(\?i\))?(?:\\b|\(\?:\^\|\[[^\]]*\]\))*")
_LENGTH = re.compile(r"\{(\d+)(?:,\d*)?\}(\)*)$")
_COUNT = re.compile(r"\{(\d+)(?:,(\d+))?\}")
_MOST_COUNTED = 40
"""The highest count in an expression. Higher ones make it large without a gain in precision."""


def written(expression: str) -> str:
    """Return the expression of a key in our dialect. Its last part may be longer. Raises BadPattern."""
    is_loose = expression.startswith("(?i)")
    found = _AFTER.sub("", _BEFORE.sub("", expression))
    found = _scoped(found.replace("[[:alnum:]]", "[A-Za-z0-9]"))
    found = _COUNT.sub(_bounded, _LENGTH.sub(r"{\1,}\2", found))
    found = re.sub(r"\{(\d+),\}", lambda count: f"{{{min(int(count[1]), _MOST_COUNTED)},}}", found)
    found = f"(?i:{found})" if is_loose else found
    parse_pattern(found)
    return found


def _bounded(count: re.Match[str]) -> str:
    """Return a count, limited to ``_MOST_COUNTED``."""
    least, most = int(count[1]), int(count[2] or count[1])
    return count[0] if most <= _MOST_COUNTED else f"{{{min(least, _MOST_COUNTED)},}}"


def _scoped(expression: str) -> str:
    """Rewrite ``a(?i)b`` as ``a(?i:b)``, up to the end of the group."""
    while (start := expression.find("(?i)")) >= 0:
        depth, end = 0, start + 4
        while end < len(expression) and depth >= 0:
            is_escaped = expression[end - 1] == "\\"
            depth += 0 if is_escaped else (expression[end] == "(") - (expression[end] == ")")
            end += 1
        end -= depth < 0
        expression = f"{expression[:start]}(?i:{expression[start + 4 : end]}){expression[end:]}"
    return expression


def taken(rules: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return, by rule, the keys that identify their vendor, and the vendor names and expressions of the others."""
    alone: dict[str, str] = {}
    named: dict[str, list[str]] = {}
    for rule in rules:
        name, expression = rule["id"], rule.get("regex", "")
        if name in _LEFT_OUT:
            continue
        try:
            if found := _NAMED.match(expression):
                named[name] = [found["names"].replace("(?-i:", "(?:"), written("(?i)" + found["value"])]
                if found["more"]:
                    alone[name] = written(found["more"][1:])
            elif expression.startswith(("(?i)[\\w", "[\\w")):
                sys.stderr.write(f"left out: {name}\n")
            else:
                alone[name] = written(expression)
        except BadPattern as error:
            sys.stderr.write(f"left out: {name}: {error}\n")
    return alone, named


def main() -> None:
    """Write the file."""
    source, license_file, commit = sys.argv[1:]
    alone, named = taken(tomllib.loads(Path(source).read_text())["rules"])
    about = {
        "source": "https://github.com/gitleaks/gitleaks, config/gitleaks.toml",
        "commit": commit,
        "license": Path(license_file).read_text(),
        "alone": alone,
        "named": named,
    }
    TARGET.write_text(json.dumps(about, indent=1) + "\n")
    sys.stdout.write(f"{len(alone)} that identify their vendor, {len(named)} that need its name\n")


if __name__ == "__main__":
    main()
