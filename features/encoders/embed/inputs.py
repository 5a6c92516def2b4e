"""Requests for vectors: the token ids of each input.

Also the settings in an encoder's folder: the longest input, the pooling of tokens into one vector, the layers after it,
the texts before an input, and the shorter vectors. They are read from the files of sentence-transformers. Without these
files a vector is the normalised mean over the tokens. A setting that would change the vectors and is not known here is
refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from headrace.features.encoders.classifier_folder import head_of
from headrace.features.encoders.embed.task import EMBED, EmbedInput, EmbedPayload, EmbedRequest
from headrace.features.encoders.encoder_folder import is_encoder, num_positions
from headrace.features.encoders.fitted_inputs import check_total, fit_texts, too_long
from headrace.features.encoders.image_folder import (
    PROCESSOR_FILE,
    clip_window,
    is_clip,
    is_image_encoder,
    num_tokens_of,
    width_of,
)
from headrace.prompts.folder_json import json_array, json_object, whole_number
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from headrace.prompts.tokenizer import Tokenizer
from headrace.prompts.vision.image_sources import check_images
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.tasks.own_task import OWN_TASK_ADVICE

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

_MODULES = "modules.json"
_POOLING = "1_Pooling"
_POOLING_FILE = f"{_POOLING}/config.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
DENSE_FOLDERS = ("2_Dense", "3_Dense")
EMBEDDER_FILES = (_MODULES, _POOLING_FILE, _LENGTH, _PROMPTS, *(f"{folder}/config.json" for folder in DENSE_FOLDERS))
"""The files of sentence-transformers beside a model. A folder may lack all of them."""


class Pooling(StrEnum):
    """How the hidden states of an input become one."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST = "lasttoken"


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer after the pooling: a linear map to ``width`` numbers, with its weights in ``folder``."""

    folder: str
    width: int
    has_tanh: bool


@dataclass(frozen=True, slots=True)
class Embedder:
    """An encoder as its callers see it. A vector has ``width`` numbers, or one of ``shorter`` if the model was trained
    so that its first numbers stand for all (Matryoshka representation learning, Kusupati et al. 2022)."""

    context_window: int
    width: int
    pooling: Pooling = Pooling.MEAN
    normalise: bool = True
    shorter: range | tuple[int, ...] = ()
    lower_case: bool = False
    dense: tuple[Dense, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts that stand before an input, by their names."""

    default_prompt: str = ""
    """The text before an input of a request that names no prompt."""

    image_tokens: int | None = None
    """How many tokens an image counts; None: the model embeds no images."""

    has_texts: bool = True
    """False if the model embeds images alone; it has no tokenizer."""

    @property
    def longest_input(self) -> int:
        """The tokens of the longest text or image."""
        return max(self.context_window, self.image_tokens or 0)

    def prompt(self, name: str | None) -> str:
        """Return the text before an input. Raises InvalidRequest for a name that the model does not have."""
        if name is None:
            return self.default_prompt
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise InvalidRequest(f"this model has no prompt {name}; its prompts are: {known}", param="prompt_name")
        return self.prompts[name]


FAKE = Embedder(context_window=8192, width=8, shorter=range(1, 8), image_tokens=50)
"""Of the encoder without weights."""


def read_embedder(files: Mapping[str, bytes]) -> Embedder:
    """Return the settings in an encoder's files, by name. Raises ModelLoadError for a model that cannot run."""
    config = json_object(files, "config.json")
    if is_clip(config) or is_image_encoder(config):
        return _of_images(files, has_texts=is_clip(config))
    length = json_object(files, _LENGTH)
    names = _modules(files)
    pooling = json_object(files, _POOLING_FILE)
    prompts, default_prompt = _prompts(json_object(files, _PROMPTS), pooling)
    dense = tuple(_dense(files, folder) for folder in DENSE_FOLDERS[: names.count("Dense")])
    width = dense[-1].width if dense else whole_number(config, "hidden_size", "dim")
    return Embedder(
        context_window=min(num_positions(config), length.get("max_seq_length") or 1 << 31),
        width=width,
        pooling=_pooling(pooling) if names else Pooling.MEAN,
        normalise="Normalize" in names or not names,
        shorter=_shorter(config, width),
        lower_case=bool(length.get("do_lower_case")),
        dense=dense,
        prompts=prompts,
        default_prompt=default_prompt,
    )


def _of_images(files: Mapping[str, bytes], *, has_texts: bool) -> Embedder:
    num_tokens = num_tokens_of(files)
    window = clip_window(files) if has_texts else num_tokens
    return Embedder(window, width_of(files), image_tokens=num_tokens, has_texts=has_texts)


def embedder_for(version: "ModelVersion", read_file: Callable[[str], bytes]) -> Embedder:
    """Return the settings of a registered encoder; ``read_file`` returns a stored file's bytes by its digest."""
    if version.is_fake:
        return FAKE
    names = ("config.json", PROCESSOR_FILE, *EMBEDDER_FILES)
    wanted = {name: digest for name, digest in version.files.items() if name in names}
    return read_embedder({name: read_file(digest) for name, digest in wanted.items()})


@dataclass(frozen=True, slots=True)
class EmbedTokens:
    """The token ids of each input, and how many of its tokens were cut."""

    inputs: tuple[tuple[int, ...], ...]
    nums_cut: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """The tokens of all inputs."""
        return sum(map(len, self.inputs))


def embed_inputs(
    tokenizer: Tokenizer,
    embedder: Embedder,
    source: EmbedInput,
    *,
    truncate: bool = False,
    prompt_name: str | None = None,
) -> EmbedTokens:
    """Return each input as tokens. The model's prompt of this name, or its default one, stands before each text.

    ``truncate``: inputs longer than the model's context window are cut at their end; the special tokens around a text
    stay. Raises InvalidRequest with the first input that has no tokens, has an id outside the vocabulary, or is too
    long (code ``context_length_exceeded``), and if all inputs together have more than MAX_TOKENS_TOGETHER.
    """
    if source.texts is not None:
        param = "input.texts"
        prompt = embedder.prompt(prompt_name)
        found = [
            text_tokens(tokenizer, embedder, prompt + text, f"{param}[{i}]", truncate=truncate)
            for i, text in enumerate(source.texts)
        ]
    else:
        param = "input.token_ids"
        found = [
            _of_ids(tokenizer, embedder, ids, f"{param}[{i}]", truncate=truncate)
            for i, ids in enumerate(source.token_ids or ())
        ]
    tokens = EmbedTokens(tuple(ids for ids, _ in found), tuple(num_cut for _, num_cut in found))
    check_total(tokens.num_tokens, param)
    return tokens


def check_texts(embedder: Embedder) -> None:
    """Raise InvalidRequest if the model embeds no texts."""
    if not embedder.has_texts:
        raise InvalidRequest("this model embeds images alone: send `images`, or ask a model of texts", param="input")


def check_dimensions(embedder: Embedder, dimensions: int | None) -> None:
    """Raise InvalidRequest if vectors cannot have so many numbers."""
    if dimensions is None or dimensions == embedder.width or dimensions in embedder.shorter:
        return
    if not embedder.shorter:
        raise InvalidRequest(
            f"this model's vectors have {embedder.width} numbers and cannot be shortened: leave `dimensions` out",
            code="unsupported_parameter",
            param="dimensions",
        )
    known = embedder.shorter
    which = (
        f"1 to {embedder.width}" if isinstance(known, range) else f"{', '.join(map(str, known))} or {embedder.width}"
    )
    raise InvalidRequest(f"`dimensions` is {dimensions}; this model's vectors have {which}", param="dimensions")


def text_tokens(
    tokenizer: Tokenizer, embedder: Embedder, text: str, param: str, *, truncate: bool
) -> tuple[tuple[int, ...], int]:
    """Return a text's token ids, and how many were cut. Raises InvalidRequest that names ``param``."""
    text = text.lower() if embedder.lower_case else text
    ids = tokenizer.encode(text, add_special=True)
    if ids and len(ids) <= embedder.context_window:
        return tuple(ids), 0
    fitted = fit_texts(tokenizer, text, embedder.context_window, param, truncate=truncate)
    return fitted.encoded.ids, fitted.num_cut


def _of_ids(
    tokenizer: Tokenizer, embedder: Embedder, ids: Sequence[int], param: str, *, truncate: bool
) -> tuple[tuple[int, ...], int]:
    highest = max(ids)
    if highest >= tokenizer.vocab_size:
        raise InvalidRequest(
            f"`{param}` has the token id {highest}, but this model's vocabulary ends at {tokenizer.vocab_size - 1}",
            param=param,
        )
    excess = max(len(ids) - embedder.context_window, 0)
    if excess and not truncate:
        raise too_long(param, f"{len(ids)}", embedder.context_window)
    return tuple(ids[: embedder.context_window]), excess


def _modules(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the names of the modules that compute a vector; none if the folder has no list of them."""
    found = json_array(files, _MODULES)
    kinds = [(str(one.get("type", "")).rpartition(".")[2], one.get("path")) for one in found if isinstance(one, dict)]
    names = tuple(kind for kind, _ in kinds)
    dense = [path for kind, path in kinds if kind == "Dense"]
    after = [name for name in names[2:] if name != "Dense"]
    if names and (names[:2] != ("Transformer", "Pooling") or names[2:] != ("Dense",) * len(dense) + tuple(after)):
        raise ModelLoadError(_unknown_modules(names))
    if after not in ([], ["Normalize"]):
        raise ModelLoadError(_unknown_modules(names))
    if names and (kinds[0][1] or kinds[1][1] != _POOLING or dense != list(DENSE_FOLDERS[: len(dense)])):
        raise ModelLoadError(
            f"{_MODULES}: the model must be in the folder itself, its pooling in {_POOLING} and its dense layers in "
            f"{' and '.join(DENSE_FOLDERS)}"
        )
    return names


def _unknown_modules(names: Sequence[str]) -> str:
    return (
        f"{_MODULES}: {', '.join(names)} cannot run here: a transformer, pooling, dense layers and normalising can, in "
        f"this order; {OWN_TASK_ADVICE}"
    )


def _dense(files: Mapping[str, bytes], folder: str) -> Dense:
    """Return a layer after the pooling. Raises ModelLoadError for an activation that does not run here."""
    name = f"{folder}/config.json"
    config = json_object(files, name)
    activation = str(config.get("activation_function")).rpartition(".")[2]
    if activation not in ("Tanh", "Identity"):
        raise ModelLoadError(
            f"{name}: the activation {activation} cannot run here: Tanh and Identity can; {OWN_TASK_ADVICE}"
        )
    return Dense(folder, whole_number(config, "out_features"), activation == "Tanh")


def _prompts(config: Mapping[str, Any], pooling: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the prompts by name, and the one for requests that name none."""
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default and default not in prompts:
        raise ModelLoadError(f"{_PROMPTS}: default_prompt_name is {default}, and prompts has no such name")
    if any(prompts.values()) and pooling.get("include_prompt") is False:
        raise ModelLoadError(
            f"{_POOLING_FILE}: include_prompt false cannot run here: a prompt is a part of its input; {OWN_TASK_ADVICE}"
        )
    return prompts, prompts[default] if default else ""


def _pooling(config: Mapping[str, Any]) -> Pooling:
    """Return the pooling that is switched on, as older or newer files name it."""
    said = config.get("pooling_mode")
    modes = {name.removeprefix("pooling_mode_") for name, value in config.items() if value is True}
    modes -= {"include_prompt"}
    found = (
        [said]
        if isinstance(said, str)
        else sorted(mode.removesuffix("_token").removesuffix("_tokens") for mode in modes)
    )
    if len(found) != 1 or found[0] not in tuple(Pooling):
        raise ModelLoadError(
            f"{_POOLING_FILE}: pooling by {', '.join(found) or 'nothing'} is not supported: {', '.join(Pooling)} are; "
            f"{OWN_TASK_ADVICE}"
        )
    return Pooling(found[0])


def _shorter(config: Mapping[str, Any], width: int) -> range | tuple[int, ...]:
    """Return the shorter vectors that the model was trained for, from the fields that vLLM reads too."""
    listed = config.get("matryoshka_dimensions")
    if listed:
        if not isinstance(listed, list) or not all(isinstance(one, int) and 0 < one <= width for one in listed):
            raise ModelLoadError(
                f"config.json: matryoshka_dimensions must be whole numbers up to {width}, not {listed!r}"
            )
        return tuple(sorted(set(listed) - {width}))
    return range(1, width) if config.get("is_matryoshka") is True else ()


def prepare(request: EmbedRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in vectors."""
    embedder: Embedder = model.settings
    check_dimensions(embedder, request.dimensions)
    num_tokens = _num_tokens(request, model)
    payload = EmbedPayload(
        input=request.input,
        dimensions=request.dimensions,
        truncate=request.truncate,
        prompt_name=request.prompt_name,
    )
    return Prepared(payload, num_tokens)


def check_length(request: EmbedRequest, model: InputModel) -> EmbedRequest:
    """Return the request; raise InvalidRequest if an input is longer than the context window."""
    _num_tokens(request, model)
    return request


def _num_tokens(request: EmbedRequest, model: InputModel) -> int:
    """Return the tokens of all inputs. Raises InvalidRequest for the first that cannot be embedded."""
    embedder: Embedder = model.settings
    if request.input.images is not None:
        if embedder.image_tokens is None:
            raise InvalidRequest("this model embeds no images: send texts, or ask a model of images", param="input")
        check_images(request.input.images)
        return embedder.image_tokens * len(request.input.images)
    check_texts(embedder)
    inputs = embed_inputs(
        model.tokenizer, embedder, request.input, truncate=request.truncate, prompt_name=request.prompt_name
    )
    return inputs.num_tokens


def _is_folder(config: Mapping[str, Any]) -> bool:
    """Return True for an encoder without a classification head, of texts or images."""
    return (is_encoder(config) and head_of(config) is None) or is_clip(config) or is_image_encoder(config)


PART = TaskInputs(
    spec=EMBED,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda request, _model: request.input.images is None,
    read_settings=embedder_for,
    is_folder=_is_folder,
    unfit_classes=re.compile(r"For(?!MaskedLM|PreTraining|MaskedImageModeling)[A-Z]|LMHeadModel$"),
    folder_files=(PROCESSOR_FILE, *EMBEDDER_FILES),
    folder_weights=tuple(f"{folder}/model.safetensors" for folder in DENSE_FOLDERS),
    folder_window=lambda files: read_embedder(files).context_window,
    has_tokenizer=lambda config: not is_image_encoder(config),
)
