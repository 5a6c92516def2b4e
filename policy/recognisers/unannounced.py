"""Keys that no word announces: values that look random, and parts of URLs that give access."""

import re

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans
from headrace.policy.recognisers.shapes import PLACEHOLDER, UUID, looks_drawn, looks_random, num_sorts
from headrace.policy.text.letter_triples import surprise

KNOWN = re.compile(
    r"(?i)(?:\b|_)(?:sha-?\d*|md5|blake\w*|digest|checksum|integrity|hash|etag|commit|revision|rev|fingerprint|nonce"
    r"|ssh-\w+|ecdsa-\w+|public.?key|pubkey|cert\w*|uuid|guid|\w*id|ids|address|wallet|state|challenge|request|peer|attachment|recipient|none-match|websocket-\w+|cid|ipfs|base64,|data:|h1:)"
    r"[\\\"'`\])>]{0,3}\s{0,2}(?:[:=\-(]|=>|is|w/)?\s{0,2}(?:w/)?[\\\"'`(<\[]{0,3}[+/_\-]{0,2}$"
    r"|\{S?SHA\d*\}$|\barn:[\w:\-]*:$|-----\s*$|base64\s*\n\s*$|(?:\$(?:2[abxy]?|[156y]|argon2\w*|apr1)|pbkdf2\w*|s?crypt\w*)\$[^\s]*$|[A-Za-z0-9+/]{40,}\s*\n\s*$"
)
_PUBLIC = re.compile(
    # Hashes of IPFS and addresses of Bitcoin.
    r"(?:Qm[1-9A-HJ-NP-Za-km-z]{44}|[13][1-9A-HJ-NP-Za-km-z]{25,34})$"
    # Addresses with a check, of Bitcoin and others; ids that begin with their time (ULID).
    r"|(?:bc|tb|ltc|npub|cosmos|osmo|stake|addr|age|ln(?:bc|tb)\w{0,8})(?:_test)?1[0-9a-z]{30,}$|baf[yk][a-z2-7]{50,}$"
    r"|0[0-7][0-9A-Z]{24}$"
    # The first bytes of files, C++'s names of functions.
    r"|(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|JVBERi0|UEsDB|H4sI|d09G|AAAA|MII|ZNK?\d|ZNK?S|eyJ)"
    r"|(?:sha\d+|md5|h1|chatcmpl|cmpl|call|msg|resp|req|run|thread|asst|file|batch|step|toolu|cus|pi|ch|cs|price|prod|sub|in|evt"
    r"|acct|pm|seti|si|txn|po|re|src|tok|card|ba|ii|il|pk|price|whk|we|usr|user|org|team|proj|ws|ses|sess|sid|id|trace|span"
    r"|job|task|doc|img|ex|inv|ord|order|dpl|wrkspc|nonce|pub)[-_:]|WebKitFormBoundary"
)
# A path without a scheme: example.com/services/…
_PATH = re.compile(r"(?:^|/)[a-z]{2,}/")
_LINES = (64, 76)
_SIGNS = re.compile(r"[+/]")
_IN_PATH = re.compile(r"://[^\s\"'<>]*$|/[^\s?#=\"'<>]*$")


def check_random(candidate: str, before: str) -> Spans:
    """A value that is drawn at random by its look alone, and neither a digest nor an id nor a part of a path."""
    value = candidate.rstrip("-_/.")
    if _PATH.search(value) or _PUBLIC.match(value):
        return
    # A line of a file in base64.
    line = f"{before.rpartition(chr(10))[2].lstrip()}{value}"
    if len(line) in _LINES and line[: -len(value)] in {"", "+", "/"} and _SIGNS.search(line) and "\n" in before:
        return
    if looks_random(value) and not KNOWN.search(before) and not _IN_PATH.search(before):
        yield 0, len(value)


RANDOM = Recogniser(
    "api_key.random",
    Kind.API_KEY,
    50,
    r"[A-Za-z0-9][A-Za-z0-9+/_\-]{19,}={0,2}",
    check_random,
    tail=r"[A-Za-z0-9+/_\-=]",
    # A hash of a password is longer than 64.
    context=128,
)


_ALL_SORTS = 4
_LONGEST_PASSWORD = 40
_MOST_SIGNS = 0.5
_LEAST_BITS_OF_SIGNS = 6.7
_SIGN_BETWEEN = re.compile(r"[^\W_][!#$%^&*@?+~]+[^\W_]")
# As Apple's programs make them.
_APPLE = re.compile(r"[A-Za-z0-9]{6}-[A-Za-z0-9]{6}-[A-Za-z0-9]{6}")
_LEAST_BITS_OF_GROUPS = 5.3
_FORMULA = re.compile(r"&[a-z]+;|%[0-9A-F]{2}|@[A-Za-z0-9\-]+\.[a-z]|[a-z]\$$|&&|\^\{|\+\+|[!?]{2}$")


def check_generated(candidate: str, before: str) -> Spans:
    """A password of four sorts of signs, as programs make them: it is no word and no formula."""
    value = candidate.rstrip(".?")
    if _PUBLIC.match(value):
        return
    if _APPLE.fullmatch(value) and num_sorts(value) == _ALL_SORTS and surprise(value) >= _LEAST_BITS_OF_GROUPS:
        yield 0, len(value)
        return
    if (
        len(value) <= _LONGEST_PASSWORD
        and num_sorts(value) == _ALL_SORTS
        and _SIGN_BETWEEN.search(value)
        and not _FORMULA.search(value)
        and not KNOWN.search(before)
        and not before.endswith(("/", "=", "&", "%", ".", ":"))
        and surprise(value) >= _LEAST_BITS_OF_SIGNS
        and sum(not sign.isalnum() for sign in value) <= _MOST_SIGNS * len(value)
        and sum(map(str.isdigit, value)) <= _MOST_SIGNS * len(value)
        and not PLACEHOLDER.search(value)
    ):
        yield 0, len(value)


GENERATED = Recogniser(
    "api_key.generated",
    Kind.API_KEY,
    49,
    r"[A-Za-z0-9!#$%^&*@?+~_\-]{12,}",
    check_generated,
)

_URL = re.compile(
    r"(?i)://(?:[^/]*\.)?(?P<host>infura\.io/v3|alchemy\.com/v2|alchemyapi\.io/v2|quiknode\.pro|ankr\.com/\w+|getblock\.io"
    r"|helius-rpc\.com|webhook\.office\.com|hooks\.zapier\.com|maker?\.\w+\.make\.com|maker\.ifttt\.com)/"
    r"|/(?P<place>(?:web)?hooks?|incomingwebhook|reset(?:[-_]?password)?|password[-_]?reset|invites?|invitation|magic(?:[-_]?link)?"
    r"|verify(?:[-_]?email)?|confirm|activate|unsubscribe|tokens?|api[-_]?keys?|auth|sso|login|share|secrets?|feeds?|ical|private)/"
)


def check_url_path(candidate: str, _before: str) -> Spans:
    """The last part of the path of a URL that gives access: a webhook, a link that resets a password."""
    start = candidate.rindex("/") + 1
    value = candidate[start:].rstrip(".-_:")
    found = _URL.search(candidate, 0, start)
    if found is not None and looks_drawn(value) and (found["host"] or not UUID.fullmatch(value)):
        yield start, start + len(value)


URL_PATH = Recogniser(
    "api_key.url_path",
    Kind.API_KEY,
    57,
    r"\b(?:https?|wss?)://[A-Za-z0-9.\-_~@%/:]{24,}",
    check_url_path,
)
