"""Sampling defaults of a model version, from the model's file and the operator's settings."""

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.sampling_params import Sampling, SamplingDefaults, parse_defaults, read_generation


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True},
         {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}),
        ({"temperature": 0.6, "do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "top_p": None}, {"temperature": 0.0}),
        # Out of the range in which a request may give it, or not known here.
        ({"temperature": 7, "top_p": 0, "top_k": -1, "min_p": 0.1, "eos_token_id": [1]}, {}),
        ({"temperature": "warm", "top_p": 0.5}, {"top_p": 0.5}),
    ],
)  # fmt: skip
def test_a_generation_configuration(generation: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_generation(generation).given() == expected


def test_the_operators_words() -> None:
    assert parse_defaults("temperature=0.2, top_p=0.9").given() == {"temperature": 0.2, "top_p": 0.9}
    assert parse_defaults("").given() == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("max_tokens=5", "'max_tokens' .*temperature, top_p, top_k,"),
        ("temperature=3", "temperature=3: .* 2"),
        ("temperature", "temperature=: .*number"),
        ("top_k=0.5", "top_k=0.5: .*integer"),
    ],
)
def test_words_that_set_nothing_are_refused(words: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        parse_defaults(words)


def test_what_a_request_says_goes_before_what_is_set() -> None:
    own, record = SamplingDefaults(temperature=0.6, top_k=20), SamplingDefaults(temperature=0.2, top_p=0.9)
    asked = Sampling.model_validate({"top_p": 1.0, "max_tokens": 4})
    found = asked.with_defaults(own.under(record))
    assert (found.temperature, found.top_p, found.top_k, found.max_tokens) == (0.2, 1.0, 20, 4)
    assert (found.repetition_penalty, found.presence_penalty) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "least", "most", "step"),
    [
        ("temperature", 0, 2, 0.01),
        ("top_p", 0.01, 1, 0.01),
        ("top_k", 0, 100_000, 1),
        ("repetition_penalty", 0.01, 10, 0.01),
        ("presence_penalty", -2, 2, 0.01),
        ("frequency_penalty", -2, 2, 0.01),
        ("max_tokens", 1, 131_072, 1),
        ("seed", 0, 2**63 - 1, 1),
        ("logprobs", 0, 20, 1),
    ],
)
def test_the_ranges_are_those_of_the_documentation(name: str, least: float, most: float, step: float) -> None:
    for value in (least, most):
        assert getattr(Sampling.model_validate({name: value}), name) == value
    for value in (least - step, most + step):
        with pytest.raises(ValidationError):
            Sampling.model_validate({name: value})


def test_the_stop_texts_are_few_and_short() -> None:
    assert len(Sampling.model_validate({"stop": ["x" * 256] * 16}).stop) == 16
    for wrong in (["x"] * 17, ["x" * 257], [""]):
        with pytest.raises(ValidationError):
            Sampling.model_validate({"stop": wrong})
