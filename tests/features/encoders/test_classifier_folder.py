"""The folder of an encoder with a classification head: its labels, its window, and the function of its scores."""

import json
from typing import Any

import pytest

from headrace.features.encoders.classifier_folder import Activation, ClassifierSettings, Head, read_classifier
from headrace.store.errors import ModelLoadError

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "max_position_embeddings": 512,
    "pad_token_id": 1,
}
TAGS = {"architectures": ["BertForTokenClassification"]}
NEWER = "torch.nn.modules.activation.Identity"


def read(**more: Any) -> ClassifierSettings:
    return read_classifier({"config.json": json.dumps(BERT | more).encode()})


@pytest.mark.parametrize(
    ("more", "labels", "activation"),
    [
        ({}, ("LABEL_0", "LABEL_1"), "Softmax"),
        ({"id2label": {"1": "b", "0": "a", "2": "c"}}, ("a", "b", "c"), "Softmax"),
        ({"id2label": {"0": "a"}, "num_labels": 2}, ("a", "LABEL_1"), "Softmax"),
        ({"problem_type": "regression"}, ("LABEL_0", "LABEL_1"), "Identity"),
        ({"problem_type": "multi_label_classification"}, ("LABEL_0", "LABEL_1"), "Sigmoid"),
        ({"num_labels": 1}, ("LABEL_0",), "Sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, ("LABEL_0",), "Sigmoid"),
        ({"num_labels": 1, "sbert_ce_default_activation_function": NEWER}, ("LABEL_0",), "Identity"),
        ({"num_labels": 1, "sentence_transformers": {"activation_fn": NEWER}}, ("LABEL_0",), "Identity"),
        (
            {
                "num_labels": 1,
                "sentence_transformers": {"activation_fn": "a.Sigmoid"},
                "sbert_ce_default_activation_function": NEWER,
            },
            ("LABEL_0",),
            "Sigmoid",
        ),
        (TAGS | {"problem_type": "regression"}, ("LABEL_0", "LABEL_1"), "Softmax"),
        (TAGS | {"num_labels": 1}, ("LABEL_0",), "Softmax"),
    ],
)
def test_a_folder_has_its_labels_and_the_function_of_its_scores(
    more: dict[str, Any], labels: tuple[str, ...], activation: str
) -> None:
    head = Head.TOKENS if "BertForTokenClassification" in more.get("architectures", ()) else Head.SEQUENCE
    assert read(**more) == ClassifierSettings(512, labels, Activation(activation), head)


def test_some_types_have_positions_behind_that_of_the_padding() -> None:
    types = ["roberta", "xlm-roberta", "camembert", "mpnet", "bert", "distilbert", "electra", "albert", "deberta"]
    types += ["deberta-v2", "modernbert"]
    assert [read(model_type=name).context_window for name in types] == [510] * 4 + [512] * 7
    assert read(model_type="roberta", pad_token_id=None).context_window == 511


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"architectures": ["BertModel"]}, "classification head"),
        ({"architectures": []}, "classification head"),
        ({"model_type": "llama"}, "classification head"),
        (
            {"problem_type": "ranking"},
            "problem_type ",
        ),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label"),
        (
            {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Softmax"}},
            "torch.nn.Softmax",
        ),
        ({"max_position_embeddings": 0}, "max_position_embeddings "),
    ],
)
def test_a_folder_that_cannot_run_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        read(**more)
    assert refused.value.message.startswith("config.json: ")
    assert said in refused.value.message


def test_a_damaged_file_is_named() -> None:
    for content, said in ((b"{", "config.json is not JSON"), (b"[]", "config.json is not a ")):
        with pytest.raises(ModelLoadError) as refused:
            read_classifier({"config.json": content})
        assert refused.value.message.startswith(said)
