"""National identity numbers: the evidence that is needed to accept one. The numbers are in ``national_ids_europe`` and
``national_ids_world``; most of their checks are from python-stdnum.

Some have so much structure that they need no more evidence. Others are a few digits with one check digit, which every
tenth order number has too, or with none. They are accepted only after words that announce them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from stdnum import get_cc_module

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans, Words, letters_and_digits

_NOT_PEOPLE = "order invoice part serial sku tracking version build ticket batch lot isbn ean imei vin phone tel fax"
_ANYWHERE = r" national\sid identity\s(?:number|card|no)"


class Proof(Enum):
    """The evidence that is needed to accept a number."""

    ITSELF = auto()
    # Written in groups with the usual separators, or announced by words.
    GROUPED = auto()
    ANNOUNCED = auto()


@dataclass(frozen=True, slots=True)
class _NationalIdCheck:
    """The check of one national number."""

    is_valid: Callable[[str], bool]
    proof: Proof
    words: Words

    def __call__(self, candidate: str, before: str) -> Spans:
        """Yield the whole candidate, or nothing."""
        if before[-1:] in {"-", ".", "/", "_", "#", "+"} and candidate[0].isdigit():
            return
        opinion = self.words.judge(before)
        is_grouped = not candidate.isalnum()
        believed = self.proof is Proof.ITSELF or (self.proof is Proof.GROUPED and is_grouped and opinion >= 0)
        if (believed or opinion > 0) and self.is_valid(candidate):
            yield 0, len(candidate)


def of_stdnum(country: str, name: str) -> Callable[[str], bool]:
    """Return the check of python-stdnum for a number. Raises LookupError if there is none of that name."""
    module = get_cc_module(country, name)
    if module is None:
        raise LookupError(f"python-stdnum has no {country}.{name}")
    return module.is_valid


def anything(_text: str) -> bool:
    """Accept every number: it has no check digit, only a pattern and the words before it."""
    return True


def national_id(
    name: str, pattern: str, is_valid: Callable[[str], bool], proof: Proof, words: str, *, ends: str = r"\b"
) -> Recogniser:
    """Return the recogniser of one national number: pattern, check, needed evidence, and the words that announce it."""
    check = _NationalIdCheck(is_valid, proof, Words(words + _ANYWHERE, _NOT_PEOPLE, in_names=True))
    written = rf"\b(?:{pattern}){ends}"
    needs = check.words.expression if proof is Proof.ANNOUNCED else None
    return Recogniser(f"national_id.{name}", Kind.NATIONAL_ID, 60, written, check, same=letters_and_digits, needs=needs)
