"""Labels of more words than the one that names a secret: ``Contraseña nueva:``, ``Chave API pessoal：``.

A label begins its line, its cell or its quotes, and ends at the sign that sets the value. It names the value as surely
as the one word does; the same words inside a sentence do not.
"""

import re

_BEGIN = re.compile(r"(?:^|[\n\"`«“|])[\s>*#+\-•\d.'(\[{]{0,8}(?:[^\W\d_][\w'’\-]{0,23}\s){0,3}$")
# What is said of a password, and is none.
_ABOUT = re.compile(
    r"(?i)\b(?:length|polic(?:y|ies)|hints?|rules?|requirements?|strength|chang\w+|expir\w+|reset|manager|types?|names?"
    r"|fields?|files?|path|url|ids?|versions?|min\w*|max\w*|hash\w*|digest|errors?|failed|invalid|wrong|lifetime|ttl|counts?|used"
    r"|usage|limits?|formats?|scopes?|updated|created|issued|rotat\w+|revoked|age|size|budget|rate|per|must|should|not|is|are"
    r"|in|at|on|from|with|by|until|since)\b"
)
# The rest of a label and its sign, where a value was expected: "API:x" behind "Cheie".
_GOES_ON = re.compile(r"[^\W\d_]{1,24}[:=][^/:=]")


def is_label(text: str, begin: int, end: int, at: int, *, is_cut: bool) -> bool:
    """True if the word from ``begin`` to ``end`` is part of a label of the value at ``at``.

    ``is_cut``: the text before the value began earlier than ``text`` does.
    """
    head = f"\0{text[:begin]}" if is_cut else text[:begin]
    return _BEGIN.search(head) is not None and _ABOUT.search(text, end, at) is None


def goes_on(text: str, at: int) -> bool:
    """True if the label goes on where a value was expected."""
    return _GOES_ON.match(text, at) is not None
