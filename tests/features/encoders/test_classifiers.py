"""Labels, entities and scores held to transformers' own pipelines on each text alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers import models as vocabularies
from tokenizers.processors import BertProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
    pipeline,
)

from headrace.features.encoders.classifier_folder import read_classifier
from headrace.features.encoders.classify.model import ClassifyModel
from headrace.features.encoders.token_classify.model import TokenClassifyModel
from headrace.features.encoders.token_classify.task import Aggregation
from headrace.features.encoders.token_pieces import load_pieces
from headrace.features.encoders.torch_classifier import classifier_for
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import describe, small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncoderModel
from tests.features.encoders.test_encoder import DISTILBERT, SIZES
from tests.models.tiny import save, save_tokenizer

MOST_APART = 1e-5
LABELS = ("no", "maybe", "yes")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = ("Ann and Ulla live by the old mill in Ulm", "x", "bread, water? élan 漢 the  mill-river")
_DEBERTA: dict[str, Any] = {
    **SIZES,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
_MODERN: dict[str, Any] = {**SIZES, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}


def _labels(names: Sequence[str], **others: object) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}, **others}


CLASSIFIERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "bert, one of the labels": lambda: BertForSequenceClassification(BertConfig(**SIZES, **_labels(LABELS))),
    "deberta-v2, several labels": lambda: DebertaV2ForSequenceClassification(
        DebertaV2Config(**_DEBERTA, **_labels(LABELS, problem_type="multi_label_classification"))
    ),
    "distilbert, regression": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(**DISTILBERT, **_labels(LABELS, problem_type="regression"))
    ),
    "modernbert": lambda: ModernBertForSequenceClassification(ModernBertConfig(**_MODERN, **_labels(LABELS))),
}
TAGGERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForTokenClassification(BertConfig(**SIZES, **_labels(TAGS))),
    "roberta": lambda: RobertaForTokenClassification(RobertaConfig(**SIZES, **_labels(TAGS))),
}


def build(model: PreTrainedModel, folder: Path, *, wordpiece: bool = False) -> Path:
    """Write a model with random weights that tell inputs and tokens apart."""
    torch.manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:  # what a token is outweighs its neighbours, so that labels differ
                parameter.normal_(0, 1.0 if "embeddings" in name else 0.4 if "classifier" in name else 0.08)
    save_tokenizer(save(model.eval(), folder))
    path = folder / "tokenizer.json"
    backend = _wordpiece() if wordpiece else tokenizers.Tokenizer.from_file(str(path))
    backend.post_processor = BertProcessing(("</s>", 2), ("<s>", 1))
    backend.save(str(path))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]"} if wordpiece else {}))
    return folder


def _wordpiece() -> tokenizers.Tokenizer:
    """A vocabulary of letters and some words; a letter inside a word has the mark."""
    letters = "abcdefghijklmnopqrstuvwxyz,?-"
    names = ["<pad>", "<s>", "</s>", "[UNK]", *letters, *(f"##{letter}" for letter in letters), "the", "mi", "ri"]
    backend = tokenizers.Tokenizer(
        vocabularies.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(names[:4])
    return backend


def theirs(folder: Path, auto: Any, task: str, **options: object) -> Any:
    """The pipeline of transformers."""
    model = auto.from_pretrained(folder, dtype=torch.float32)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.model_type == "bert" else [])]
    special = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), model_input_names=names, **special
    )
    return pipeline(task, model=model, tokenizer=tokenizer, **options)  # type: ignore[call-overload]


def run(model: EncoderModel, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The output of a job, with its inputs in one pass and in the engine's order, the longest first."""
    job = model.read(payload)
    order = sorted(range(len(job.inputs)), key=lambda index: -len(job.inputs[index]))
    found = model.encoder.run([EncodeRow("r", job.inputs[index], job.options, index) for index in order])
    by_index = dict(zip(order, found, strict=True))
    return job.output([by_index[index] or b"" for index in range(len(order))])


def classifier(folder: Path) -> ClassifyModel:
    files = small_files(folder)
    version: Any = None
    encoder = classifier_for(folder, Settings(device="cpu"))
    return ClassifyModel(version, encoder, load_tokenizer(files), read_classifier(files))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_labels_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = build(CLASSIFIERS[family](), tmp_path)
    pairs = [["the mill", "a river"], ["x", "the old mill by the river"]]
    model = classifier(folder)
    output = run(model, {"input": {"texts": [*TEXTS, *pairs]}})
    ask = theirs(folder, AutoModelForSequenceClassification, "text-classification", top_k=None)
    asked = [*TEXTS, *({"text": first, "text_pair": second} for first, second in pairs)]
    for ours, expected in zip(output["classifications"], (ask([one])[0] for one in asked), strict=True):
        scores = [one["score"] for one in ours]
        assert scores == pytest.approx([one["score"] for one in expected], abs=MOST_APART)
        assert [one["label"] for one in ours] == [one["label"] for one in expected]
    assert output["labels"] == list(LABELS)
    best = run(model, {"input": {"texts": [TEXTS[0]]}, "top_k": 1})["classifications"]
    assert best == [[pytest.approx(output["classifications"][0][0], abs=MOST_APART)]]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("family", TAGGERS)
def test_entities_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = build(TAGGERS[family](), tmp_path, wordpiece=family == "bert")
    files = small_files(folder)
    version: Any = None
    encoder = classifier_for(folder, Settings(device="cpu"))
    model = TokenClassifyModel(version, encoder, load_tokenizer(files), load_pieces(files), read_classifier(files))
    ask = theirs(folder, AutoModelForTokenClassification, "token-classification")
    nums = set()
    for how in Aggregation:
        payload = {"input": {"texts": TEXTS}, "aggregation_strategy": how, "ignore_labels": ["I-PER"]}
        output = run(model, payload)["entities"]
        for text, ours in zip(TEXTS, output, strict=True):
            expected = ask(text, aggregation_strategy=how.value, ignore_labels=["I-PER"])
            assert [_place(one, one["label"]) for one in ours] == [
                _place(one, one.get("entity_group") or one["entity"]) for one in expected
            ], (how, text)
            scores = [float(one["score"]) for one in expected]
            assert [one["score"] for one in ours] == pytest.approx(scores, abs=MOST_APART)
        nums.add(sum(map(len, output)))
    assert len(nums) > 2, "the ways differ on these texts"


def _place(one: Mapping[str, Any], label: str) -> tuple[object, ...]:
    return (label, one["start"], one["end"], one["word"], one.get("index"))


def test_a_long_text_is_cut_if_the_request_says_so(tmp_path: Path) -> None:
    folder = build(CLASSIFIERS["bert, one of the labels"](), tmp_path)
    model = classifier(folder)
    long = "y" * 100
    output = run(model, {"input": {"texts": ["x", long, ["x", long]]}, "truncate": True})
    assert output["truncated"] == [{"index": 1, "tokens": 38}, {"index": 2, "tokens": 40}]
    whole = run(model, {"input": {"texts": ["x", "y" * 62, ["x", "y" * 60]]}})
    assert "truncated" not in whole
    for cut, fitting in zip(output["classifications"], whole["classifications"], strict=True):
        assert cut == [pytest.approx(one, abs=MOST_APART) for one in fitting]


def test_a_folder_is_registered_by_its_head(tmp_path: Path) -> None:
    text = describe(build(CLASSIFIERS["modernbert"](), tmp_path / "text"))
    tags = describe(build(TAGGERS["roberta"](), tmp_path / "tags"))
    assert (text.runner, tags.runner) == ("classifier", "token-classifier")
    assert (text.context_window, tags.context_window) == (64, 62)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id2label": {"0": "yes", "1": "yes", "2": "no"}}, "the same name"),
        ({"problem_type": "ranking"}, "problem_type"),
    ],
)
def test_a_folder_with_unclear_labels_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    folder = build(CLASSIFIERS["bert, one of the labels"](), tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelLoadError, match=reason):
        describe(folder)
