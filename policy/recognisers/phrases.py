"""Secrets with spaces or brackets inside, which stand behind their name: passphrases, and values up to a line's end."""

import re

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans
from headrace.policy.recognisers.shapes import PLACEHOLDER, num_sorts
from headrace.policy.text.letter_triples import surprise

_NAME = (
    r"(?i:pass ?-?phrase|pass ?word|passwort|kennwort|contraseña|mot de passe|senha|wachtwoord|passwd|pwd"
    r"|secret|token|(?:\b|_)key|(?:\b|_)salt|api_?key|parole|frase (?:semilla|segreta|de recuperación))"
)
_SEED = (
    r"(?i:(?:seed|recovery|mnemonic|backup|secret|wallet)[ _\-]?(?:recovery[ _\-]?)?(?:phrase|words|seed)|mnemonic|seed"
    r"|wiederherstellungsphrase|phrase de récupération|frase (?:semilla|di recupero|de recuperación)"
    r"|сид[- ]?фраз[аы]|助记词)"
)
_SIGNS = r"[\w\-]{0,12}[\"'`*\])]{0,3} {0,2}(?:=>|:=|[:=,]|is|are|was|ist|est|es|é|è)[ \n]{0,3}[*\[(]{0,2}"
# Words of sentences that are no words of passphrases.
_SENTENCE = re.compile(
    r"\b(?:the|and|for|with|your|you|this|that|must|may|can|cannot|not|are|was|will|should|have|has|please|enter|type"
    r"|invalid|wrong|required?|minimum|least|characters?|password|passwords|letters?|digits?|words?|never|always|from|use"
    r"|incorrect|missing|match|field|forgot|change|changed|reset|new|old|current|confirm|user|users|number|empty|optional"
    r"|una?|les?|des|pour|est|der|die|das|und|ist|nicht|los|las|por|que|con|per|non|het|een|van|voor)\b"
)
# Of the words that restore a wallet none is one of these.
_PROSE = re.compile(r"\b(?:the|and|for|your|are|was|not|please|should|words|phrase|these|them|keep|write)\b")
_WORDS = re.compile(r"[a-z]{3,10}(?: [a-z]{3,10}){3,}")
_LEAST_BITS = 6.2
# Google's passwords for programs: four groups of four letters.
_LENGTH_OF_GROUPS = 19
_LEAST_BITS_OF_GROUPS = 5.5
_LEAST_SIGNS = 16


def check_phrase(candidate: str, _before: str) -> Spans:
    """A value in quotes with a space inside: words that make no sentence, or random signs."""
    quote = candidate[-1]
    if quote.isalpha():
        start = len(candidate) - _LENGTH_OF_GROUPS
        if surprise(candidate[start:]) >= _LEAST_BITS_OF_GROUPS:
            yield start, len(candidate)
        return
    start = candidate.rindex("“" if quote == "”" else quote, 0, -1) + 1
    value = candidate[start:-1]
    if " " not in value or value.startswith("-----") or PLACEHOLDER.search(value):
        return
    is_words = _WORDS.fullmatch(value) is not None and not _SENTENCE.search(value)
    is_random = len(value) >= _LEAST_SIGNS and num_sorts(value) > 3 and surprise(value) >= _LEAST_BITS
    if is_words or is_random:
        yield start, len(candidate) - 1


PHRASE = Recogniser(
    "api_key.phrase",
    Kind.API_KEY,
    58,
    rf"{_NAME}{_SIGNS}(?:\"[^\"\n]+\"|'[^'\n]+'|`[^`\n]+`|“[^”\n]+”|(?:[a-z]{{4}} ){{3}}[a-z]{{4}}\b)",
    check_phrase,
)


_SIGN = re.compile(r"[:=\n]")
_SEED_WORDS = re.compile(r"(?:(?:\d{1,2}[.)] ?)?[a-z]{3,8}[ ,\n]{1,3}){11,23}(?:\d{1,2}[.)] ?)?[a-z]{3,8}$")


def check_seed(candidate: str, _before: str) -> Spans:
    """Twelve to 24 words that restore a wallet."""
    name = _SIGN.split(candidate, maxsplit=1)[0]
    found = _SEED_WORDS.search(candidate, len(name) + 1)
    if found is not None and not _PROSE.search(found[0]):
        yield found.span()


SEED = Recogniser(
    "api_key.seed",
    Kind.API_KEY,
    58,
    rf"\b{_SEED}[\"'`]{{0,2}}(?: [a-z0-9()]{{1,12}}){{0,3}} ?[:=\n][ \n\"'`>]{{0,4}}"
    r"(?:(?:\d{1,2}[.)] ?)?[a-z]{3,8}[ ,\n]{1,3})+(?:\d{1,2}[.)] ?)?[a-z]{3,8}\b",
    check_seed,
)


_NAME_BEFORE = re.compile(
    r"(?i)(?:password|passwd|passphrase|_pass|\bpass|pwd|_pw|\bpw|secret|token|api_key|passwort|kennwort|salt)\w{0,8}"
    r"(?: [^\s:=\"'`]{1,24}){0,5}\"?[ \t]{0,8}$"
)
_STRUCTURE = re.compile(
    r"[,;|{&]\w+\"?[=:]|</|/>|&(?:lt|gt|quot|#\d+)\b|\([A-Za-z ]*\)|^[\[{(<$]|://|\w\(\)|->|\$\{|\{\{"
)
_SETTING = re.compile(r"(?:^[=:]|(?<=\w)=)[ \t]{0,8}((?:[^;]|;(?![A-Za-z]\w*(?:=|$)))+)(?:;[A-Za-z]\w*(?==|$)|$)")
_INNER = re.compile(r"[^\s][,;(){}\[\]<>|][^\s,;]")
_LEAST_LINE_BITS = 7.0
_LONG_LINE = 32


def check_line(candidate: str, before: str) -> Spans:
    """A value with brackets or commas inside, up to the next space behind its name and a sign."""
    # In a connection string other settings stand before and behind.
    for found in _SETTING.finditer(candidate):
        value = found[1].rstrip(",;.")
        if (
            _INNER.search(value)
            and not _STRUCTURE.search(value)
            and num_sorts(value) > (3 if len(value) < _LONG_LINE else 2)
            and surprise(value) >= _LEAST_LINE_BITS
            and not PLACEHOLDER.search(value)
            and _NAME_BEFORE.search(before + candidate[: found.start()])
        ):
            yield found.start(1), found.start(1) + len(value)


LINE = Recogniser("api_key.line", Kind.API_KEY, 57, r"[=:][ \t]{0,8}[^\s\"'`]{8,128}", check_line)
