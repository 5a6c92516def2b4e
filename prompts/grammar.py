"""Grammars for constrained decoding: the allowed next tokens, and the check of a new grammar.

Only this module and ``grammar_trial`` use llguidance. It needs no torch, so that the API can refuse a grammar that no
worker could run. The state of a matcher depends only on the grammar and the output so far, so it can be rebuilt.
"""

import atexit
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer

from headrace.prompts import grammar_trial
from headrace.prompts.grammar_trial import TrialFailed, Trials, Vocabulary, limits
from headrace.prompts.sandbox.process import Program, start
from headrace.prompts.sandbox.turns import Turns, tenant_at_work
from headrace.prompts.schema_narrowing import in_our_words, narrow
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.payloads.sampling_params import MAX_GRAMMAR_CHARS, GrammarKind

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

MOST_BYTES = 64 << 20
"""The memory limit for all grammars of one model, in bytes."""

_LEAST_BYTES = 4096
_MAX_QUOTED = 200
_TOO_COMPLEX = (
    "it is too complex: write {0,n} rather than many optional parts in a row, and give long texts and lists no or "
    "smaller bounds"
)
_LIMITS_REACHED = ("limits.", "too many expressions", "too many states", "Too many items", "fuel", "too big")
TRIALS = Trials(partial(start, Program(Path(grammar_trial.__file__))))
atexit.register(TRIALS.close)
TURNS = Turns(1)
_A_SCHEMA = 'give a schema, such as {"type": "object"}'
TOO_DEEP = "it is nested too deeply"


class Grammars:
    """A cache of compiled grammars for the tokenizer of one model. Thread-safe.

    The tokenizer is built at the first grammar, because that takes a quarter of a second. A new grammar is tried in
    another process and then compiled here: up to a second each, without the GIL. One new grammar at a time, by turns of
    the tenants (``prompts.sandbox.turns``). Results and errors are kept, up to MOST_BYTES.
    """

    def __init__(self, tokenizer: bytes | None, *, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        """Without ``tokenizer``, it is that of the fake model: one token a byte."""
        self._vocabulary = Vocabulary(tokenizer, vocab_size, tuple(sorted(eos_token_ids)))
        self._eos = eos_token_ids
        self._tokenizer = lru_cache(maxsize=1)(self._read_tokenizer)
        self._lock = Lock()
        self._kept: LRUCache[tuple[str, str], _CachedGrammar] = LRUCache(MOST_BYTES, lambda kept: kept.num_bytes)

    def check(self, kind: str, text: str) -> None:
        """Raise InvalidRequest, with the reason, for a grammar that this model cannot follow.

        Raises Unavailable if a new grammar cannot be tried.
        """
        self._compiled(kind, text)

    def is_compiled(self, kind: str, text: str) -> bool:
        """Return True for a valid grammar that is in the cache."""
        kept = self._known(kind, text)
        return kept is not None and isinstance(kept.found, LLMatcher)

    def matcher(self, kind: str, text: str) -> "Matcher":
        """Return a matcher at the start of a grammar. Raises as ``check``."""
        return Matcher(self._compiled(kind, text), self._eos, self._vocabulary.size)

    def _compiled(self, kind: str, text: str) -> LLMatcher:
        if (kept := self._known(kind, text)) is None:
            with TURNS.turn(tenant_at_work()):
                # Another one may have made it meanwhile.
                kept = self._known(kind, text) or self.make(kind, text)
                if kept.num_bytes <= self._kept.maxsize:
                    with self._lock:
                        self._kept[kind, text] = kept
        if isinstance(kept.found, InvalidRequest):
            # A new error for each caller: one object in many threads would chain their tracebacks.
            raise InvalidRequest(kept.found.message, code=kept.found.code, param=kept.found.param)
        return kept.found

    def _known(self, kind: str, text: str) -> "_CachedGrammar | None":
        with self._lock:
            return self._kept.get((kind, text))

    def make(self, kind: str, text: str) -> "_CachedGrammar":
        try:
            source = _source(kind, text)
            tokenizer = self._tokenizer()
            num_bytes = TRIALS.run(self._vocabulary, source)
            if num_bytes is None:
                raise _refusal(_TOO_COMPLEX, kind)
            return _CachedGrammar(_compile(tokenizer, source, kind, text), num_bytes + len(text) + _LEAST_BYTES)
        except UnicodeEncodeError:
            return _CachedGrammar(_refusal("it holds half a character", kind), len(text) + _LEAST_BYTES)
        except InvalidRequest as refused:
            return _CachedGrammar(refused, len(text) + _LEAST_BYTES)
        except TrialFailed as error:
            raise Unavailable(f"the grammar could not be checked: {error}") from error

    def _read_tokenizer(self) -> LLTokenizer:
        if not self._eos:
            raise InvalidRequest("this model cannot follow a grammar: it has no end-of-sequence token")
        try:
            return self._vocabulary.tokenizer()
        except ValueError as error:
            raise InvalidRequest(f"this model cannot follow a grammar: {_short(str(error))}") from error


@dataclass(frozen=True, slots=True)
class _CachedGrammar:
    """A compiled grammar or its error, and its memory in bytes."""

    found: LLMatcher | InvalidRequest
    num_bytes: int


class Matcher:
    """The position of one request in its grammar. At the end of the grammar, only an end token is allowed."""

    def __init__(self, beginning: LLMatcher, eos_token_ids: frozenset[int], vocab_size: int) -> None:
        self._beginning = beginning
        self._eos = eos_token_ids
        self._num_bytes = -(-vocab_size // 32) * 4
        self._matcher = beginning.deep_copy()
        self._num_taken = 0

    @property
    def is_stuck(self) -> bool:
        """True if no token can follow: the output does not match the grammar, or the grammar is too complex."""
        return self._matcher.is_error()

    def follow(self, output: Sequence[int], begin: int = 0) -> None:
        """Move to the end of ``output``, of which the grammar begins at ``begin``, the same in all calls.

        Restart if it does not continue the earlier output.
        """
        if begin + self._num_taken > len(output):
            self._matcher = self._beginning.deep_copy()
            self._num_taken = 0
        self._matcher.consume_tokens(list(output[begin + self._num_taken :]))
        self._num_taken = len(output) - begin

    def masks(self, drafts: Sequence[int] = ()) -> list[bytes]:
        """Return the masks of the next token and of the tokens after each draft: one bit a token, in 32-bit words.

        The list ends at the first forbidden draft.
        """
        masks = [self._matcher.compute_bitmask()[: self._num_bytes]]
        ahead = self._matcher.deep_copy() if drafts else self._matcher
        for token in drafts:
            if token in self._eos or ahead.try_consume_tokens([token]) == 0:
                break
            masks.append(ahead.compute_bitmask()[: self._num_bytes])
        return masks


def grammars_for(version: "ModelVersion", tokenizer: Tokenizer, read_file: Callable[[str], bytes]) -> Grammars:
    """Return the grammars of a registered version. ``read_file`` returns the bytes of a stored file by its digest."""
    has_file = version.runner != "fake" and not version.is_without_tokenizer
    file = read_file(version.files["tokenizer.json"]) if has_file else None
    return Grammars(file, vocab_size=tokenizer.vocab_size, eos_token_ids=tokenizer.eos_token_ids)


def _compile(tokenizer: LLTokenizer, source: str, kind: str, text: str) -> LLMatcher:
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits())
    # Some grammars allow no token at all, which shows only at the first mask.
    matcher.compute_bitmask()
    if matcher.is_error():
        schema = json.loads(text) if kind == GrammarKind.JSON_SCHEMA else None
        raise _refusal(_in_our_words(matcher.get_error(), schema), kind)
    return matcher


def _in_our_words(error: str, schema: Any) -> str:
    """Return the error of llguidance. For its limits, add the remedy."""
    if any(sign in error for sign in _LIMITS_REACHED):
        return _TOO_COMPLEX
    return in_our_words(error, schema).replace("NoExtensionBias", "it allows no answer")


def _source(kind: str, text: str) -> str:
    """Return a grammar in the format of llguidance."""
    if kind not in set(GrammarKind):
        raise _refusal(f"there is no kind {kind}")
    if len(text) > MAX_GRAMMAR_CHARS:
        raise _refusal(f"it is longer than {MAX_GRAMMAR_CHARS} characters", kind)
    match GrammarKind(kind):
        case GrammarKind.JSON_SCHEMA:
            return _from_schema(text)
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(text)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(text)
        case GrammarKind.CHOICE:
            return LLMatcher.grammar_from_lark(f"start: {' | '.join(map(_quoted, _choices(text)))}")


def _from_schema(text: str) -> str:
    try:
        # Without white space, because a small model may otherwise write only white space.
        narrow = json.dumps(narrowed(json.loads(text)))
        return LLMatcher.grammar_from_json_schema(narrow, defaults={"whitespace_flexible": False})
    except ValueError as error:
        raise _refusal(str(error), GrammarKind.JSON_SCHEMA) from error
    except RecursionError:
        raise _refusal(TOO_DEEP, GrammarKind.JSON_SCHEMA) from None


def narrowed(schema: Any) -> dict[str, Any]:
    """Return a schema as ``schema_narrowing`` writes it for llguidance, ``true`` as the empty one.

    Raises InvalidRequest if the schema is ``false`` or no object, or is nested too deeply.
    """
    if schema is True:
        return {}
    if schema is False or schema == {"not": {}}:
        raise _refusal(f"{json.dumps(schema)} allows no value: {_A_SCHEMA}", GrammarKind.JSON_SCHEMA)
    if not isinstance(schema, dict):
        raise _refusal(f"it is not a JSON object: {_A_SCHEMA}", GrammarKind.JSON_SCHEMA)
    try:
        found: dict[str, Any] = narrow(schema)
        return found
    except RecursionError:
        raise _refusal(TOO_DEEP, GrammarKind.JSON_SCHEMA) from None


def _choices(text: str) -> list[str]:
    try:
        choices = json.loads(text)
    except ValueError as error:
        raise _refusal(f"a choice is a JSON array: {error}") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise _refusal("a choice is a JSON array of texts, none of them empty")
    return choices


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _short(message: str) -> str:
    return message.strip().partition("\n")[0][:_MAX_QUOTED]


def _refusal(message: str, kind: str | None = None) -> InvalidRequest:
    is_schema = kind == GrammarKind.JSON_SCHEMA
    return InvalidRequest(
        f"the {'JSON schema' if is_schema else 'grammar'} cannot be followed: {_short(message)}",
        code="invalid_json_schema" if is_schema else None,
        param="sampling.grammar",
    )
