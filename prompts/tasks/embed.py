"""Requests for vectors: the token ids of each input.

Also the settings in an encoder's folder: the longest input, the pooling of tokens into one vector, and the shorter
vectors. They are read from the files of sentence-transformers. Without these files a vector is the normalised mean over
the tokens. A setting that would change the vectors and is not known here is refused.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from prompts.tokenizer import Tokenizer
from store.errors import InvalidRequest, ModelLoadError
from store.payloads.job_payload import PinnedPolicy
from store.tasks.embed import EMBED, MAX_TOKENS_TOGETHER, EmbedInput, EmbedPayload, EmbedRequest

if TYPE_CHECKING:
    from store.registry.models import ModelVersion

_MODULES = "modules.json"
_POOLING = "1_Pooling"
_POOLING_FILE = f"{_POOLING}/config.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
EMBEDDER_FILES = (_MODULES, _POOLING_FILE, _LENGTH, _PROMPTS)
"""The files of sentence-transformers beside a model. A folder may lack all of them."""

# The first position embedding of these types comes after that of the padding token.
_OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet")
ENCODER_TYPES = (*_OFFSET_TYPES, "bert", "distilbert", "electra", "albert")
"""The values of ``model_type`` that are encoders here."""


class Pooling(StrEnum):
    """How the hidden states of an input become one."""

    MEAN = "mean"
    CLS = "cls"


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


FAKE = Embedder(context_window=8192, width=8, shorter=range(1, 8))
"""Of the encoder without weights."""


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a model that makes vectors here."""
    return config.get("model_type") in ENCODER_TYPES


def read_embedder(files: Mapping[str, bytes]) -> Embedder:
    """Return the settings in an encoder's files, by name. Raises ModelLoadError for a model that cannot run."""
    config = _object(files, "config.json")
    length = _object(files, _LENGTH)
    names = _modules(files)
    prompts = _object(files, _PROMPTS)
    if prompts.get("default_prompt_name"):
        raise ModelLoadError(f"{_PROMPTS}: a default prompt is not supported: let callers put it before their texts")
    width = _whole(config, "hidden_size", "dim")
    return Embedder(
        context_window=min(num_positions(config), length.get("max_seq_length") or 1 << 31),
        width=width,
        pooling=_pooling(_object(files, _POOLING_FILE)) if names else Pooling.MEAN,
        normalise="Normalize" in names or not names,
        shorter=_shorter(config, width),
        lower_case=bool(length.get("do_lower_case")),
    )


def embedder_for(version: "ModelVersion", read_file: Callable[[str], bytes]) -> Embedder:
    """Return the settings of a registered encoder; ``read_file`` returns a stored file's bytes by its digest."""
    if version.is_fake:
        return FAKE
    wanted = {name: digest for name, digest in version.files.items() if name in ("config.json", *EMBEDDER_FILES)}
    return read_embedder({name: read_file(digest) for name, digest in wanted.items()})


def embed_inputs(
    tokenizer: Tokenizer, embedder: Embedder, source: EmbedInput, *, truncate: bool = False
) -> tuple[tuple[int, ...], ...]:
    """Return each input's token ids.

    ``truncate``: inputs longer than the model's context window are cut at their end; the special tokens around a text
    stay. Raises InvalidRequest with the first input that has no tokens, has an id outside the vocabulary, or is too
    long (code ``context_length_exceeded``), and if all inputs together have more than MAX_TOKENS_TOGETHER.
    """
    window = embedder.context_window if truncate else None
    if source.texts is not None:
        found = tuple(
            _of_text(tokenizer, embedder, text, f"input.texts[{i}]", window) for i, text in enumerate(source.texts)
        )
    else:
        given = source.token_ids or ()
        found = tuple(
            _of_ids(tokenizer, embedder, ids[:window], f"input.token_ids[{i}]") for i, ids in enumerate(given)
        )
    if (total := sum(map(len, found))) > MAX_TOKENS_TOGETHER:
        param = "input.token_ids" if source.texts is None else "input.texts"
        raise InvalidRequest(
            f"`{param}` has {total} tokens, and one request may have {MAX_TOKENS_TOGETHER}: send several", param=param
        )
    return found


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


def _of_text(tokenizer: Tokenizer, embedder: Embedder, text: str, param: str, window: int | None) -> tuple[int, ...]:
    text = text.lower() if embedder.lower_case else text
    ids = tokenizer.encode(text, add_special=True)
    if window is not None and len(ids) > window:
        ids = _cut(ids, tokenizer.encode(text, add_special=False), window)
    return _fitting(ids, embedder, param)


def _cut(ids: Sequence[int], plain: Sequence[int], window: int) -> list[int]:
    """Return ``ids`` cut to ``window`` tokens, with the special tokens that it has around the ``plain`` ones."""
    num_special = len(ids) - len(plain)
    before = next((n for n in range(num_special + 1) if ids[n : n + len(plain)] == plain), num_special)
    after = ids[before + len(plain) :]
    return [*ids[: window - len(after)], *after]


def _of_ids(tokenizer: Tokenizer, embedder: Embedder, ids: Sequence[int], param: str) -> tuple[int, ...]:
    highest = max(ids)
    if highest >= tokenizer.vocab_size:
        raise InvalidRequest(
            f"`{param}` has the token id {highest}, but this model's vocabulary ends at {tokenizer.vocab_size - 1}",
            param=param,
        )
    return _fitting(ids, embedder, param)


def _fitting(ids: Sequence[int], embedder: Embedder, param: str) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest(f"`{param}` has no tokens: there is nothing to embed", param=param)
    if len(ids) > embedder.context_window:
        raise InvalidRequest(
            # OpenAI's message begins with the same words, as in ``prompts.tasks.generate.fit``.
            f"this model's maximum context length is {embedder.context_window} tokens, `{param}` has {len(ids)}: "
            "shorten it",
            code="context_length_exceeded",
            param=param,
        )
    return tuple(ids)


def _modules(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the names of the modules that compute a vector; none if the folder has no list of them."""
    found = _json(files, _MODULES, list)
    kinds = [(str(one.get("type", "")).rpartition(".")[2], one.get("path")) for one in found if isinstance(one, dict)]
    names = tuple(kind for kind, _ in kinds)
    if names and (names[:2] != ("Transformer", "Pooling") or names[2:] not in ((), ("Normalize",))):
        raise ModelLoadError(
            f"{_MODULES}: {', '.join(names)} cannot run here: a transformer, pooling and normalising can"
        )
    if names and (kinds[0][1] or kinds[1][1] != _POOLING):
        raise ModelLoadError(f"{_MODULES}: the model must be in the folder itself and its pooling in {_POOLING}")
    return names


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
            f"{_POOLING_FILE}: pooling by {', '.join(found) or 'nothing'} is not supported: mean and cls are"
        )
    return Pooling(found[0])


def num_positions(config: Mapping[str, Any]) -> int:
    """Return the number of tokens that a model of one of ``ENCODER_TYPES`` has position embeddings for."""
    positions = _whole(config, "max_position_embeddings")
    offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET_TYPES else 0
    return positions - offset


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


def _whole(config: Mapping[str, Any], *names: str) -> int:
    """Return the value of the first field that the configuration has."""
    value = next((config[name] for name in names if name in config), None)
    if not isinstance(value, int) or value < 1:
        raise ModelLoadError(f"config.json: {names[0]} must be a positive whole number, not {value!r}")
    return value


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return dict(_json(files, name, dict))


def _json(files: Mapping[str, bytes], name: str, kind: type) -> Any:
    """Return a file's JSON object or array, an empty one if the file is not there."""
    if name not in files:
        return kind()
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise ModelLoadError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ModelLoadError(f"{name} is not a JSON {'object' if kind is dict else 'array'}")
    return value


def prepare(request: EmbedRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in vectors."""
    embedder: Embedder = model.settings
    check_dimensions(embedder, request.dimensions)
    inputs = embed_inputs(model.tokenizer, embedder, request.input, truncate=request.truncate)
    payload = EmbedPayload(input=request.input, dimensions=request.dimensions, truncate=request.truncate)
    return Prepared(payload, sum(map(len, inputs)))


def check_length(request: EmbedRequest, model: InputModel) -> EmbedRequest:
    """Return the request; raise InvalidRequest if an input is longer than the context window."""
    embed_inputs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    return request


EMBED_INPUTS = TaskInputs(
    spec=EMBED,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda _request, _model: True,
    read_settings=embedder_for,
    is_folder=is_encoder,
    folder_files=EMBEDDER_FILES,
    folder_window=lambda files: read_embedder(files).context_window,
)
