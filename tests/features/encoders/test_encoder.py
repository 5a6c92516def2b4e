"""Vectors held to transformers' own model run on each input alone: every family, mixed lengths, the real model."""

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from headrace.features.encoders.loading import load_encoder
from headrace.features.encoders.torch_encoder import TorchEncoder, encoder_for
from headrace.models.catalog import fetch, main, register
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import folder_digest, small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.models.tiny import save, save_tokenizer

REPOSITORY = Path(__file__).parents[3]
SETTINGS = Settings(device="cpu")
LENGTHS = (3, 17, 1, 40, 40, 9, 33, 2)
MOST_APART = 2e-6
"""Between the numbers of a vector computed alone and with others, in float32; they are at most 1."""

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
DISTILBERT = {
    "vocab_size": 320,
    "dim": 64,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 96,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**DISTILBERT)),
}


def build(family: str, folder: Path, **files: object) -> Path:
    """Write a random model, wide enough to show an influence between inputs."""
    torch.manual_seed(7)
    model: PreTrainedModel = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name.lower() else parameter.normal_(0, 0.2)
    save(model, folder)
    for name, value in files.items():
        path = folder / {"pooling": "1_Pooling/config.json", "modules": "modules.json"}[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    return save_tokenizer(folder)


def inputs(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(5, 300, (length,), generator=generator).tolist()) for length in lengths]


def encode(
    encoder: TorchEncoder, tokens: Sequence[tuple[int, ...]], dimensions: int | None = None
) -> list[tuple[float, ...]]:
    vectors = encoder.run([EncodeRow("r", one, dimensions) for one in tokens])
    return [struct.unpack(f"<{len(vector) // 4}f", vector) for vector in vectors if vector is not None]


@torch.inference_mode()
def reference(folder: Path, tokens: Sequence[tuple[int, ...]], *, cls: bool = False) -> list[list[float]]:
    """The output of transformers' own model for each input alone, without padding or a mask."""
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
    states = [model(input_ids=torch.tensor([one])).last_hidden_state[0] for one in tokens]
    pooled = [state[0] if cls else state.mean(0) for state in states]
    return [(one / one.norm()).tolist() for one in pooled]


def apart(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    return max(abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_together_what_the_reference_says_of_each_alone(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path)
    encoder = encoder_for(folder, SETTINGS)
    together = encode(encoder, inputs())
    assert apart(together, reference(folder, inputs())) < MOST_APART
    alone = [encode(encoder, [one])[0] for one in inputs()]
    assert apart(together, alone) < MOST_APART
    assert apart(together, together[1:] + together[:1]) > 1000 * MOST_APART, "inputs are told apart"


def test_the_folder_decides_how_states_are_pooled(tmp_path: Path) -> None:
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in steps]
    folder = build("bert", tmp_path, modules=modules, pooling={"pooling_mode_cls_token": True})
    found = encode(encoder_for(folder, SETTINGS), inputs())
    lengths = [math.hypot(*one) for one in found]
    assert min(lengths) > 1.1, "it has no module that normalises"
    scaled = [[number / length for number in one] for one, length in zip(found, lengths, strict=True)]
    assert apart(scaled, reference(folder, inputs(), cls=True)) < MOST_APART


def test_a_shorter_vector_is_the_beginning_brought_to_unit_length(tmp_path: Path) -> None:
    encoder = encoder_for(build("bert", tmp_path), SETTINGS)
    (whole,), (short,) = encode(encoder, inputs([9])), encode(encoder, inputs([9]), dimensions=16)
    norm = math.hypot(*whole[:16])
    assert short == pytest.approx([number / norm for number in whole[:16]], abs=MOST_APART)


@pytest.mark.parametrize("pooling", ["max", "lasttoken"])
def test_other_poolings_and_layers_after_them(pooling: str, tmp_path: Path) -> None:
    names = ("Transformer", "Pooling", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [{"type": f"st.{name}", "path": path} for name, path in zip(names, paths, strict=True)]
    folder = build("bert", tmp_path, pooling={"pooling_mode": pooling}, modules=modules)
    dense = torch.nn.Linear(64, 24)
    (folder / "2_Dense").mkdir()
    settings = {"in_features": 64, "out_features": 24, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    weights = {f"linear.{name}": tensor for name, tensor in dense.state_dict().items()}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    digest = folder_digest(folder)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
    states = [model(input_ids=torch.tensor([one])).last_hidden_state[0] for one in inputs()]
    pooled = [state.amax(0) if pooling == "max" else state[-1] for state in states]
    expected = [(one / one.norm()).tolist() for one in (dense(state).tanh() for state in pooled)]
    assert apart(encode(encoder_for(folder, SETTINGS), inputs()), expected) < 2 * MOST_APART
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "2_Dense" / "model.safetensors")
    assert folder_digest(folder) != digest, "the layer's weights are a part of the version"


def test_a_row_that_is_not_finite_has_no_vector_and_spoils_no_other(tmp_path: Path) -> None:
    encoder = encoder_for(build("bert", tmp_path), SETTINGS)
    sound = encode(encoder, inputs([2, 3]))
    encoder.model.embeddings.word_embeddings.weight.data[301] = float("nan")
    first, *others = encoder.run([EncodeRow("r", one, None) for one in ((5, 301, 7), *inputs([2, 3]))])
    assert first is None
    assert None not in others
    assert apart(encode(encoder, [(5, 301, 7), *inputs([2, 3])]), sound) < MOST_APART


def test_a_folder_is_registered_as_an_encoder_and_loaded_only_unchanged(db: Database, tmp_path: Path) -> None:
    folder = build("bert", tmp_path)
    version = register(db, "org/vectors", str(folder), "auto", actor="tests")
    assert (version.runner, version.task, version.context_window) == ("encoder", "embed", 64)
    assert load_encoder(version, SETTINGS).context_window == 64
    (folder / "modules.json").write_text("[]")
    assert folder_digest(folder) != version.digest
    with pytest.raises(ModelLoadError, match="new version"):
        load_encoder(version, SETTINGS)


def test_8_bits_are_not_for_encoders(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    assert main(["register", "v", str(build("bert", tmp_path)), "--dtype", "int8"]) == 1
    assert "float32 or bfloat16" in capsys.readouterr().err
    assert main(["register", "v", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("v@1\n", ""), "the measurement is of models that generate"


def test_minilm_says_what_transformers_says_of_each_text_alone() -> None:
    folder = fetch("minilm", REPOSITORY / ".headrace" / "models")
    tokenizer = load_tokenizer(small_files(folder))
    texts = ["a mill on the river", "the water wheel turns", "stock prices fell", "x", "a long one " * 60]
    tokens = [tuple(tokenizer.encode(text, add_special=True)) for text in texts]
    ours = encode(encoder_for(folder, SETTINGS), tokens)
    theirs = reference(folder, tokens)
    cosines = [sum(a * b for a, b in zip(one, other, strict=True)) for one, other in zip(ours, theirs, strict=True)]
    assert min(cosines) >= 0.9999
    assert apart(ours, theirs) < MOST_APART
    alike, unlike = (sum(a * b for a, b in zip(ours[0], ours[n], strict=True)) for n in (1, 2))
    assert alike > unlike + 0.2
