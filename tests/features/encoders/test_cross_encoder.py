"""Scores held to transformers' own model and tokenizer run on each pair alone."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers.processors import BertProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from headrace.features.encoders.classifier_folder import Activation, read_classifier
from headrace.features.encoders.rerank.inputs import is_cross_encoder, rerank_pairs
from headrace.features.encoders.rerank.task import RerankInput
from headrace.features.encoders.torch_classifier import classifier_for
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import describe, small_files
from headrace.prompts.encoded_texts import EncodedTexts
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.settings import Settings
from tests.features.encoders.test_encoder import DISTILBERT, MOST_APART, SIZES
from tests.models.tiny import save, save_tokenizer

SETTINGS = Settings(device="cpu")
QUERY = "where is the mill?"
DOCUMENTS = ("a mill on the river", "x", "bread and water", "where is the mill?")
_ONE_LABEL: dict[str, Any] = {"num_labels": 1}
FAMILIES = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, **_ONE_LABEL)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, **_ONE_LABEL)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT, **_ONE_LABEL)),
}


def build_cross_encoder(family: str, folder: Path, **config: object) -> Path:
    """Write a random cross-encoder with a tokenizer that writes pairs as BERT's does."""
    torch.manual_seed(7)
    model: PreTrainedModel = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name.lower() else parameter.normal_(0, 0.2)
    save_tokenizer(save(model, folder))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = BertProcessing(("</s>", 2), ("<s>", 1))
    backend.save(str(folder / "tokenizer.json"))
    return folder


@torch.inference_mode()
def reference_scores(folder: Path, query: str, documents: Sequence[str]) -> list[float]:
    """The numbers of transformers' own model and tokenizer for each pair alone, without an activation."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.model_type == "bert" else [])]
    scores = []
    for document in documents:
        encoded = tokenizer(query, document, return_tensors="pt", return_token_type_ids=True)
        scores.append(float(model(**{name: encoded[name] for name in names}).logits[0, 0]))
    return scores


def pairs_of(folder: Path, documents: Sequence[str] = DOCUMENTS) -> tuple[EncodedTexts, ...]:
    files = small_files(folder)
    source = RerankInput(query=QUERY, documents=tuple(documents))
    pairs = rerank_pairs(load_tokenizer(files), read_classifier(files), source)
    return tuple(pair.encoded for pair in pairs)


def scores_of(folder: Path) -> list[float]:
    pairs = pairs_of(folder)
    types = tuple(pair.type_ids for pair in pairs)
    rows = [EncodeRow("r", pair.ids, types, index) for index, pair in enumerate(pairs)]
    # In another order than that of the request, as the engine runs them.
    found = classifier_for(folder, SETTINGS).run(rows[::-1])
    return [struct.unpack("<f", score)[0] for score in reversed(found) if score is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_sigmoid_of_the_reference(family: str, tmp_path: Path) -> None:
    folder = build_cross_encoder(family, tmp_path)
    numbers = reference_scores(folder, QUERY, DOCUMENTS)
    assert scores_of(folder) == pytest.approx(torch.tensor(numbers).sigmoid().tolist(), abs=MOST_APART)
    assert len(set(numbers)) == len(DOCUMENTS)


def test_the_token_types_of_a_pair_reach_the_model(tmp_path: Path) -> None:
    folder = build_cross_encoder("bert", tmp_path)
    (pair,) = pairs_of(folder, ["bread"])
    encoder = classifier_for(folder, SETTINGS)
    marked = encoder.run([EncodeRow("r", pair.ids, (pair.type_ids,))])
    unmarked = encoder.run([EncodeRow("r", pair.ids, ((0,) * len(pair.ids),))])
    assert marked != unmarked


@pytest.mark.parametrize(
    "config",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_a_folder_may_ask_for_the_models_own_numbers(config: dict[str, object], tmp_path: Path) -> None:
    folder = build_cross_encoder("bert", tmp_path, **config)
    assert read_classifier(small_files(folder)).activation is Activation.IDENTITY
    assert scores_of(folder) == pytest.approx(reference_scores(folder, QUERY, DOCUMENTS), abs=1e-5)


def test_a_folder_is_registered_by_its_one_label(tmp_path: Path) -> None:
    folder = build_cross_encoder("bert", tmp_path)
    found = describe(folder)
    assert (found.runner, found.context_window) == ("cross-encoder", 64)
    config = json.loads((folder / "config.json").read_text())
    assert not is_cross_encoder(config | {"id2label": {"0": "no", "1": "yes"}})
    assert not is_cross_encoder(config | {"architectures": ["BertModel"]})


def test_an_activation_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = build_cross_encoder("bert", tmp_path, sentence_transformers={"activation_fn": "torch.nn.Softmax"})
    with pytest.raises(ModelLoadError, match="Softmax"):
        describe(folder)


def test_a_pair_that_is_too_long_is_named_and_not_cut(tmp_path: Path) -> None:
    folder = build_cross_encoder("bert", tmp_path)
    with pytest.raises(InvalidRequest, match="64 tokens") as refused:
        pairs_of(folder, ["x", "y" * 100])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input.documents[1]")
