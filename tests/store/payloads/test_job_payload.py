"""Payloads of jobs: their terms and usage, orders to read files, and truncations. No I/O."""

import pytest

from headrace.features.encoders.encoder_fields import CutInput
from headrace.features.retrieval.ingest_order import IngestOrder, IngestSource, is_ingest
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import CLASS_NAMES, CLASS_RANKS, JobTerms, PinnedPolicy, Usage, read_payload
from headrace.store.payloads.retrieval import RankingOptions
from headrace.store.payloads.sampling_params import Sampling, Truncated, Truncation
from tests.store.payloads.making import SOURCE


def test_an_order_to_read_a_file_needs_one_and_is_equal_to_no_other() -> None:
    order = IngestOrder.model_validate({"model": "vectors"})
    with pytest.raises(ValueError, match="no file"):
        _ = order.source
    source = IngestSource.model_validate(SOURCE | {"num_bytes": 11})
    made = order.with_source(source)
    assert (made.source, made.digest_fields(), source.expected_tokens) == (source, {"ticket": "t"}, 2)
    assert IngestSource.model_validate(SOURCE).expected_tokens == 1
    assert (order.fixed_texts(), order.revealing_field(), order.called_urls()) == ((), None, ())
    assert (is_ingest({"ingest": {}}), is_ingest({"input": {}})) == (True, False)
    assert JobTerms().digest_fields() == {}


def test_a_better_class_has_a_lower_rank() -> None:
    assert {name.value: rank for name, rank in CLASS_RANKS.items()} == {"interactive": 0, "standard": 1, "batch": 2}
    assert {rank: name.value for rank, name in CLASS_NAMES.items()} == {0: "interactive", 1: "standard", 2: "batch"}


def test_usage_and_policies_of_an_older_release_have_defaults() -> None:
    usage = Usage(input_tokens=5, output_tokens=2, queue_ms=1.0, compute_ms=2.0)
    assert (usage.total_tokens, usage.cached_tokens, usage.reasoning_tokens) == (7, 0, 0)
    assert (usage.first_token_ms, usage.attempt_first_token_ms) == (None, None)
    pinned = PinnedPolicy(model="any", version=1)
    assert (pinned.flagged, pinned.counts, pinned.vault) == ((), {}, None)


def test_a_payload_that_cannot_be_read_names_its_fields_and_no_value() -> None:
    assert read_payload(CutInput, {"index": 1, "tokens": 2}) == CutInput(index=1, tokens=2)
    with pytest.raises(InvalidRequest) as caught:
        read_payload(PinnedPolicy, {"model": "m", "version": "secret", "counts": {"a": "secret"}, "other": 1})
    assert caught.value.message.endswith(": counts.a, other, version")
    assert caught.value.code == "invalid_payload"


@pytest.mark.parametrize(
    ("ranker", "reranker"),
    [(None, None), ("auto", None), ("none", None), ("default-2024", None), ("bge", "bge"), ("automatic", "automatic")],
)
def test_a_ranker_with_another_name_is_a_model(ranker: str | None, reranker: str | None) -> None:
    assert RankingOptions(ranker=ranker).reranker == reranker


def test_a_request_says_which_tokens_it_names_and_which_defaults_it_sets() -> None:
    found = Sampling.model_validate({"stop_token_ids": [3], "logit_bias": {"7": 1}, "top_p": 1, "temperature": 0})
    assert found.named_tokens == {"stop_token_ids": (3,), "logit_bias": (7,)}
    assert found.explicit_defaults() == ["top_p"]
    assert Sampling().named_tokens == {"stop_token_ids": (), "logit_bias": ()}
    both = Sampling.model_validate({"top_k": 0, "presence_penalty": 0, "seed": None})
    assert both.explicit_defaults() == ["presence_penalty", "top_k"]


def test_two_truncations_of_one_input_are_added() -> None:
    first, second = (
        Truncated(strategy=Truncation.LEFT, tokens=3),
        Truncated(strategy=Truncation.AUTO, tokens=4, turns=2),
    )
    assert (first.turns, second.plus(None)) == (0, second)
    assert second.plus(first) == Truncated(strategy=Truncation.AUTO, tokens=7, turns=2)
    assert second.as_header() == "auto; tokens=4; turns=2"
    assert {one.value for one in Truncation if one.refuses} == {"refuse", "disabled"}
    assert {one.value for one in Truncation if one.cuts_texts} == {"left", "middle"}
