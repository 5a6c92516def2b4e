"""The files of an encoder model, unsupported variants, and the error of each refused input."""

import json
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from headrace.features.encoders.embed.inputs import (
    FAKE,
    Dense,
    Embedder,
    Pooling,
    check_dimensions,
    embed_inputs,
    read_embedder,
)
from headrace.features.encoders.embed.task import EmbedInput
from headrace.features.encoders.encoder_folder import is_encoder
from headrace.prompts.tokenizer import ByteTokenizer, load_tokenizer
from headrace.store.errors import InvalidRequest, ModelLoadError
from tests.refusals import Naming

BERT = {"model_type": "bert", "hidden_size": 384, "max_position_embeddings": 512, "pad_token_id": 0}
POOLING = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def modules(*names: str) -> list[dict[str, object]]:
    paths = ["", *(f"{place}_{name}" for place, name in enumerate(names[1:], 1))]
    return [
        {"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in zip(names, paths, strict=True)
    ]


def files(config: dict[str, Any] = BERT, **others: object) -> dict[str, bytes]:
    named = {
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "length": "sentence_bert_config.json",
        "prompts": "config_sentence_transformers.json",
    }
    found = {"config.json": config} | {named[name]: value for name, value in others.items()}
    return {name: json.dumps(value).encode() for name, value in found.items()}


def test_a_folder_of_sentence_transformers_is_read() -> None:
    given = files(
        modules=modules("Transformer", "Pooling", "Normalize"),
        pooling=POOLING,
        length={"max_seq_length": 256, "do_lower_case": False},
        prompts={"__version__": {}},
    )
    assert read_embedder(given) == Embedder(256, 384, Pooling.MEAN, normalise=True)


def test_a_plain_folder_means_the_mean_and_unit_length() -> None:
    assert read_embedder(files()) == Embedder(512, 384, Pooling.MEAN, normalise=True)


def test_positions_after_the_padding_tokens_count() -> None:
    roberta = BERT | {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert read_embedder(files(roberta)).context_window == 512


@pytest.mark.parametrize(
    "pooling", [POOLING | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, {"pooling_mode": "cls"}]
)
def test_the_first_tokens_state_may_stand_for_all(pooling: dict[str, object]) -> None:
    found = read_embedder(files(modules=modules("Transformer", "Pooling"), pooling=pooling))
    assert (found.pooling, found.normalise) == (Pooling.CLS, False)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (files(modules=modules("Transformer", "Pooling", "CNN"), pooling=POOLING), "CNN cannot run"),
        (files(modules=modules("Transformer", "Pooling", "Normalize", "Dense"), pooling=POOLING), "in this order"),
        (files(modules=modules("Transformer", "Pooling", "Dense"), pooling=POOLING), "activation None cannot run"),
        (
            files(modules=modules("Transformer", "Pooling"), pooling={"pooling_mode_weightedmean_tokens": True}),
            "weightedmean is not",
        ),
        (files(modules=modules("Transformer", "Pooling")), "by nothing"),
        (files(prompts={"default_prompt_name": "query"}), "prompts has no"),
        (
            files(
                modules=modules("Transformer", "Pooling"),
                pooling=POOLING | {"include_prompt": False},
                prompts={"prompts": {"query": "q: "}},
            ),
            "include_prompt false",
        ),
        (files(BERT | {"hidden_size": "many"}), "hidden_size must be"),
        (files(BERT | {"matryoshka_dimensions": [64, 999]}), "up to 384"),
        (
            files(
                modules=[{"path": "0_Transformer", "type": "a.Transformer"}, modules("a", "Pooling")[1]],
                pooling=POOLING,
            ),
            "1_Pooling",
        ),
        ({"config.json": b"{"}, "not JSON"),
    ],
)
def test_what_would_change_the_vectors_and_is_not_known_is_refused(given: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        read_embedder(given)


def test_a_prompt_stands_before_each_text() -> None:
    prompts = {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}
    embedder = read_embedder(files(prompts=prompts))
    source = EmbedInput(texts=("ab",))
    by_name = {name: embed_inputs(ByteTokenizer(), embedder, source, prompt_name=name) for name in (None, "document")}
    assert by_name[None].inputs == (tuple(b"q: ab"),)
    assert by_name["document"].inputs == (tuple(b"ab"),)
    with pytest.raises(InvalidRequest, match="query, document") as refused:
        embed_inputs(ByteTokenizer(), embedder, source, prompt_name="passage")
    assert refused.value.param == "prompt_name"


def test_dense_layers_are_read_from_their_own_folders() -> None:
    layers = {
        f"{folder}/config.json": json.dumps({"out_features": width, "activation_function": f"torch.nn.{name}"}).encode()
        for folder, width, name in (("2_Dense", 96, "Tanh"), ("3_Dense", 48, "Identity"))
    }
    given = files(modules=modules("Transformer", "Pooling", "Dense", "Dense", "Normalize"), pooling=POOLING) | layers
    dense = (Dense("2_Dense", 96, has_tanh=True), Dense("3_Dense", 48, has_tanh=False))
    assert read_embedder(given) == Embedder(512, 48, Pooling.MEAN, normalise=True, dense=dense)
    one = files(modules=modules("Transformer", "Pooling", "Dense"), pooling=POOLING) | layers
    assert read_embedder(one) == Embedder(512, 96, Pooling.MEAN, normalise=False, dense=dense[:1])


def test_lower_case_is_the_folders_setting() -> None:
    embedder = read_embedder(files(length={"do_lower_case": True}))
    assert embed_inputs(ByteTokenizer(), embedder, EmbedInput(texts=("AB",))).inputs == (tuple(b"ab"),)


@pytest.mark.parametrize(("pooling", "found"), [("mean", "mean"), ("max", "max"), ("lasttoken", "lasttoken")])
def test_each_pooling_has_an_older_and_a_newer_name(pooling: str, found: str) -> None:
    older = {"mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}
    names = ({"pooling_mode": pooling, "include_prompt": True}, {older.get(pooling, "pooling_mode_lasttoken"): True})
    for config in names:
        assert read_embedder(files(modules=modules("Transformer", "Pooling"), pooling=config)).pooling == Pooling(found)


def test_a_folder_of_images_has_its_own_windows() -> None:
    processor = {"preprocessor_config.json": b'{"size": 28}'}
    vit = {"model_type": "vit", "hidden_size": 4, "patch_size": 14}
    clip = {"model_type": "clip", "projection_dim": 6, "vision_config": {"patch_size": 7}}
    assert read_embedder(files(vit) | processor) == Embedder(5, 4, image_tokens=5, has_texts=False)
    assert read_embedder(files(clip) | processor) == Embedder(77, 6, image_tokens=17, has_texts=True)


def test_decoders_are_no_encoders() -> None:
    assert is_encoder(BERT)
    assert not is_encoder({"model_type": "llama"})


@pytest.mark.parametrize(
    ("config", "allowed", "refused", "code", "said"),
    [
        (
            BERT,
            [None, 384],
            64,
            "unsupported_parameter",
            "leave `dimensions` out",
        ),
        (
            BERT | {"matryoshka_dimensions": [128, 64, 384, 64]},
            [None, 64, 128, 384],
            100,
            "invalid_value",
            " 64, 128 or 384",
        ),
        (
            BERT | {"is_matryoshka": True},
            [None, 1, 100, 384],
            385,
            "invalid_value",
            " 1 to 384",
        ),
    ],
)
def test_vectors_are_cut_only_as_the_model_was_trained(
    config: dict[str, Any], allowed: list[int | None], refused: int, code: str, said: str
) -> None:
    embedder = read_embedder(files(config))
    for dimensions in allowed:
        check_dimensions(embedder, dimensions)
    with pytest.raises(InvalidRequest) as told:
        check_dimensions(embedder, refused)
    assert (told.value.code, told.value.param, told.value.message) == (code, "dimensions", Naming(said))


def test_texts_and_token_ids_become_the_same_inputs() -> None:
    by_text = embed_inputs(ByteTokenizer(), FAKE, EmbedInput(texts=("ab", "c")))
    assert by_text == embed_inputs(ByteTokenizer(), FAKE, EmbedInput(token_ids=((97, 98), (99,))))
    assert by_text.inputs == ((97, 98), (99,))


@pytest.mark.parametrize(
    ("source", "code", "param"),
    [
        (EmbedInput(texts=("a", "b" * 8193)), "context_length_exceeded", "input.texts[1]"),
        (EmbedInput(token_ids=((1,), (2,) * 8193)), "context_length_exceeded", "input.token_ids[1]"),
        (EmbedInput(token_ids=((1,), (2,), (3, 257))), "invalid_value", "input.token_ids[2]"),
    ],
)
def test_an_input_that_does_not_fit_is_named(source: EmbedInput, code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        embed_inputs(ByteTokenizer(), FAKE, source)
    assert (told.value.code, told.value.param) == (code, param)


def test_a_cut_text_keeps_its_special_tokens() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3}, "[SEP]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer = load_tokenizer({"tokenizer.json": backend.to_str().encode()})
    source = EmbedInput(texts=("a b a b a", "a b", "a"))
    small = replace(FAKE, context_window=4)
    found = embed_inputs(tokenizer, small, source, truncate=True)
    assert found.inputs == ((0, 2, 3, 1), (0, 2, 3, 1), (0, 2, 1))
