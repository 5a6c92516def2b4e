"""Numbers that states give to people: what it takes to believe one. The numbers are in ``national_ids_europe`` and
``national_ids_world``; most of their checks are python-stdnum's.

Some carry so much structure that they are known by themselves. Others are a few digits with one check digit, which
every tenth order number has too, or with none: they count only where the words before say what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from stdnum import get_cc_module

from policy.recognisers.recogniser import Kind, Recogniser, Spans, Words, letters_and_digits

_NOT_PEOPLE = "order invoice part serial sku tracking version build ticket batch lot isbn ean imei vin phone tel fax"
_ANYWHERE = r" national\sid identity\s(?:number|card|no)"


class Proof(Enum):
    """What it takes to believe a number."""

    ITSELF = auto()
    # Written in groups, with the state's own signs between them; or announced.
    GROUPED = auto()
    ANNOUNCED = auto()


@dataclass(frozen=True, slots=True)
class _Check:
    """A check of one state's number."""

    is_valid: Callable[[str], bool]
    proof: Proof
    words: Words

    def __call__(self, candidate: str, before: str) -> Spans:
        """The whole candidate, or nothing."""
        if before[-1:] in {"-", ".", "/", "_", "#", "+"} and candidate[0].isdigit():
            return
        opinion = self.words.judge(before)
        is_grouped = not candidate.isalnum()
        believed = self.proof is Proof.ITSELF or (self.proof is Proof.GROUPED and is_grouped and opinion >= 0)
        if (believed or opinion > 0) and self.is_valid(candidate):
            yield 0, len(candidate)


def of_stdnum(country: str, name: str) -> Callable[[str], bool]:
    """Return python-stdnum's check of a country's number. Raises LookupError if it has none of that name."""
    module = get_cc_module(country, name)
    if module is None:
        raise LookupError(f"python-stdnum has no {country}.{name}")
    return module.is_valid


def anything(_text: str) -> bool:
    """A number without a check digit: the pattern and the words before it are all there is."""
    return True


def national_id(
    name: str, pattern: str, is_valid: Callable[[str], bool], proof: Proof, words: str, *, ends: str = r"\b"
) -> Recogniser:
    """One state's number: how it is written, its check, what it takes to believe it, and the words that announce it."""
    check = _Check(is_valid, proof, Words(words + _ANYWHERE, _NOT_PEOPLE))
    written = rf"\b(?:{pattern}){ends}"
    needs = check.words.expression if proof is Proof.ANNOUNCED else None
    return Recogniser(f"national_id.{name}", Kind.NATIONAL_ID, 60, written, check, same=letters_and_digits, needs=needs)
