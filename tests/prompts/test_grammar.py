"""Grammars: the allowed next tokens, and the grammars that are refused at submission."""

import json
import resource
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from headrace.prompts import grammar, grammar_trial
from headrace.prompts.grammar import Grammars
from headrace.prompts.grammar_trial import Trials
from headrace.prompts.sandbox.process import Program, start
from headrace.prompts.sandbox.turns import on_behalf_of
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.payloads.sampling_params import MAX_GRAMMAR_CHARS, GrammarKind
from tests.processes import wait_for

EOS = 256
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def backend() -> tokenizers.Tokenizer:
    """One token a byte, in the order of GPT-2's letters, and an end of sequence."""
    backend = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(LETTERS)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    return backend


@pytest.fixture(scope="module")
def grammars(backend: tokenizers.Tokenizer) -> Grammars:
    return Grammars(backend.to_str().encode(), vocab_size=300, eos_token_ids=frozenset({EOS}))


def allowed(mask: bytes) -> set[int]:
    assert len(mask) == 40
    bits = int.from_bytes(mask, "little")
    return {token for token in range(320) if bits >> token & 1}


@pytest.fixture(scope="module")
def ids(backend: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: list(backend.encode(text).ids)


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        ("regex", "[0-9]{2,3}", ["12", "123"], ["1a", "1234"]),
        (
            "choice",
            '["yes", "no", "a \\"quoted\\" \\\\ one", "naïve 🦆"]',
            ["no", 'a "quoted" \\ one', "naïve 🦆"],
            ["nope"],
        ),
        ("lark", 'start: "(" start ")" | "x"', ["((x))"], ["((x)))"]),
        (
            "json_schema",
            '{"anyOf":[{"format":"time","type":"string"},{"const":{"format":"time"}}]}',
            ['"23:59:59Z"', '"00:00:09.5+01:00"', '{"format":"time"}'],
            ['"23:59:60Z"', '{"format":"time",'],
        ),
        (
            "json_schema",
            json.dumps(
                {
                    "type": "object",
                    "patternProperties": {r'^[^"]\[x$': {"type": "string", "pattern": r'^[^"\\]{2}$'}},
                    "additionalProperties": False,
                }
            ),
            ['{"a[x":"bc"}', '{"é[x":"é "}', "{}"],
            [r'{"\"[x":"bc"}', r'{"a[x":"\\a"}', r'{"a[x":"\"\""}', r'{"a[x":"\n\n"}'],
        ),
        ("json_schema", '{"type":"array","items":{"type":"integer"}}', ["[1,-2]", "[]"], ["[1, 2]", "[1.5]", "{"]),
    ],
)
def test_each_kind_follows_its_text(
    grammars: Grammars, ids: Callable[[str], list[int]], kind: str, text: str, good: list[str], bad: list[str]
) -> None:
    grammars.check(kind, text)
    for answer in (*good, *bad):
        tokens = ids(answer)
        matcher = grammars.matcher(kind, text)
        masks = matcher.masks(tokens)
        passes = [token in allowed(mask) for token, mask in zip(tokens, masks, strict=False)]
        if answer in good:
            assert len(masks) == len(tokens) + 1
            assert all(passes)
            assert EOS in allowed(masks[-1])
        else:
            assert not all(passes)


def test_a_complete_grammar_allows_its_end_alone(grammars: Grammars, ids: Callable[[str], list[int]]) -> None:
    matcher = grammars.matcher("regex", "ab?")
    matcher.follow(ids("a"))
    assert allowed(matcher.masks()[0]) == {EOS, *ids("b")}
    matcher.follow(ids("ab"))
    assert allowed(matcher.masks()[0]) == {EOS}


def test_drafts_leave_the_matcher_where_it_was(grammars: Grammars, ids: Callable[[str], list[int]]) -> None:
    matcher = grammars.matcher("regex", "(abc)+")
    matcher.follow(ids("ab"))
    masks = matcher.masks(ids("cab"))
    assert [allowed(mask) for mask in masks] == [{*ids("c")}, {*ids("a"), EOS}, {*ids("b")}, {*ids("c")}]
    assert matcher.masks(ids("cxx"))[1:] == masks[1:2], "nothing is known after a draft that cannot come"
    assert matcher.masks([*ids("c"), EOS, *ids("a")]) == masks[:2], "nor after the end"
    matcher.follow(ids("abc"))
    assert matcher.masks() == masks[1:2]


def test_a_shorter_output_is_followed_from_the_beginning(grammars: Grammars, ids: Callable[[str], list[int]]) -> None:
    matcher = grammars.matcher("regex", "abc")
    matcher.follow(ids("ab"))
    matcher.follow(ids("a"))
    assert allowed(matcher.masks()[0]) == {*ids("b")}


def test_a_grammar_may_begin_behind_the_beginning_of_the_output(
    grammars: Grammars, ids: Callable[[str], list[int]]
) -> None:
    matcher = grammars.matcher("regex", "abc")
    for output, allows in (("xy", "a"), ("xya", "b"), ("xyab", "c"), ("xya", "b")):
        matcher.follow(ids(output), begin=2)
        assert allowed(matcher.masks()[0]) == {*ids(allows)}


def test_an_output_outside_of_the_grammar_is_stuck(grammars: Grammars, ids: Callable[[str], list[int]]) -> None:
    matcher = grammars.matcher("regex", "abc")
    matcher.follow(ids("ax"))
    assert matcher.is_stuck
    assert not grammars.matcher("regex", "abc").is_stuck


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("poem", "a", "kind poem"),
        (
            "regex",
            "a" * (MAX_GRAMMAR_CHARS + 1),
            f"{MAX_GRAMMAR_CHARS} characters",
        ),
        ("regex", "\udcff", "half a character"),
        ("choice", "[]", "JSON array"),
        (
            "json_schema",
            '{"not":' * 3000 + "{}" + "}" * 3000,
            "too deeply",
        ),
    ],
)
def test_the_reason_of_a_refusal_is_a_sentence(grammars: Grammars, kind: str, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        grammars.check(kind, text)
    assert refused.value.param == "sampling.grammar"
    assert said in refused.value.message
    assert not grammars.is_compiled(kind, text)


REFUSED = [
    ("regex", "[a-z"),
    ("regex", "(?=a)b"),
    ("regex", r"[^\s\S]"),
    ("regex", "a" * (MAX_GRAMMAR_CHARS + 1)),
    ("regex", "\udcff"),
    ("lark", "start: nope"),
    ("json_schema", "{nope"),
    ("json_schema", "3"),
    ("json_schema", '{"type":"integer","minimum":5,"maximum":3}'),
    ("json_schema", '{"type":"strin"}'),
    ("json_schema", '{"$ref":"https://example.com/schema"}'),
    ("json_schema", '{"not":' * 3000 + "{}" + "}" * 3000),
    ("choice", "[]"),
    ("choice", '["a", ""]'),
    ("choice", '{"a": 1}'),
    ("choice", "yes"),
    ("choice", '["\\ud800"]'),
    ("poem", "a"),
]


@pytest.mark.parametrize(("kind", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_nobody_could_follow_is_refused(grammars: Grammars, kind: str, text: str) -> None:
    for ask in (grammars.check, grammars.matcher):
        with pytest.raises(InvalidRequest, match=r": .") as raised:
            ask(kind, text)
        assert len(raised.value.message) < 300
        assert raised.value.code == ("invalid_json_schema" if kind == "json_schema" else "invalid_value")


def test_a_model_without_an_end_follows_no_grammar(backend: tokenizers.Tokenizer) -> None:
    endless = Grammars(backend.to_str().encode(), vocab_size=300, eos_token_ids=frozenset())
    with pytest.raises(InvalidRequest, match="end-of-sequence"):
        endless.matcher("regex", "a")
    with pytest.raises(InvalidRequest, match="follow a grammar"):
        Grammars(b"{}", vocab_size=300, eos_token_ids=frozenset({1})).matcher("regex", "a")


def test_kinds_are_these() -> None:
    assert [kind.value for kind in GrammarKind] == ["json_schema", "regex", "lark", "choice"]
    Grammars(None, vocab_size=257, eos_token_ids=frozenset({EOS})).check("json_schema", '{"enum": ["a", 1, null]}')


@pytest.mark.parametrize("kind", ["regex", "lark"])
@pytest.mark.parametrize("num_parts", [3000, 16_000])
def test_a_grammar_that_would_take_minutes_and_gigabytes_is_refused_in_time(
    grammars: Grammars, kind: str, num_parts: int
) -> None:
    text = ".?" * num_parts if kind == "regex" else f"start: /{'.?' * num_parts}/"
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"\{0,n\}"):
            grammars.check(kind, text)
    assert not grammars.is_compiled(kind, text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 20_000
    grammars.check("regex", "after that [0-9]+")


def test_what_is_kept_is_bounded_by_its_memory(backend: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.prompts.grammar.MOST_BYTES", 6_000_000)
    grammars = Grammars(backend.to_str().encode(), vocab_size=300, eos_token_ids=frozenset({EOS}))
    small = [f"{number}[a-z]+" for number in range(20)]
    for text in small:
        grammars.check("regex", text)
    assert all(grammars.is_compiled("regex", text) for text in small)
    large = [".?" * (400 + number) for number in range(4)]
    for text in large:
        grammars.check("regex", text)
    assert not any(grammars.is_compiled("regex", text) for text in small)
    assert grammars.is_compiled("regex", large[-1])


def test_a_trial_that_cannot_be_held_says_nothing_about_the_grammar(
    backend: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(partial(start, Program(Path(grammar_trial.__file__))))
    monkeypatch.setattr("headrace.prompts.grammar.TRIALS", trials)
    one = Grammars(backend.to_str().encode(), vocab_size=300, eos_token_ids=frozenset({EOS}))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="not be checked"):
        one.check("regex", "a")
    monkeypatch.undo()
    monkeypatch.setattr("headrace.prompts.grammar.TRIALS", trials)
    one.check("regex", "a")
    trials.close()
    one.check("regex", "b")
    trials.close()


def test_new_grammars_of_one_tenant_do_not_hold_up_another(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(None, vocab_size=257, eos_token_ids=frozenset({EOS}))
    tried: list[str] = []
    let_go = threading.Event()

    def slowly(_vocabulary: object, source: str) -> int:
        tried.append(next(letter for letter in "abcz" if f"{letter}{{7}}" in source))
        assert let_go.wait(60)
        return 0

    def check(tenant_id: str, letter: str) -> None:
        with on_behalf_of(tenant_id):
            grammars.check("regex", f"{letter}{{7}}")

    monkeypatch.setattr(grammar.TRIALS, "run", slowly)
    asked = [("many", "a"), ("many", "b"), ("many", "c"), ("many", "a"), ("other", "z")]
    threads = [threading.Thread(target=check, args=each) for each in asked]
    for number, thread in enumerate(threads):
        thread.start()
        wait_for(lambda n=number: tried and sum(map(len, grammar.TURNS.waiting.values())) == n, "it waits")
    let_go.set()
    for thread in threads:
        thread.join(60)
    assert tried == ["a", "z", "b", "c"], "the next turn is of the other tenant, and a grammar is made once"
