"""Requests for vectors: the token ids of each input.

Also the settings in an encoder's folder: the longest input, the pooling of tokens into one vector, and the shorter
vectors. They are read from the files of sentence-transformers. Without these files a vector is the normalised mean over
the tokens. A setting that would change the vectors and is not known here is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from prompts.encoder_folder import is_encoder, json_array, json_object, num_positions, whole_number
from prompts.encoder_inputs import check_total, fit_texts, too_long
from prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from prompts.tokenizer import Tokenizer
from store.errors import InvalidRequest, ModelLoadError
from store.payloads.job_payload import PinnedPolicy
from store.tasks.embed import EMBED, EmbedInput, EmbedPayload, EmbedRequest

if TYPE_CHECKING:
    from store.registry.models import ModelVersion

_MODULES = "modules.json"
_POOLING = "1_Pooling"
_POOLING_FILE = f"{_POOLING}/config.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
EMBEDDER_FILES = (_MODULES, _POOLING_FILE, _LENGTH, _PROMPTS)
"""The files of sentence-transformers beside a model. A folder may lack all of them."""


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


def read_embedder(files: Mapping[str, bytes]) -> Embedder:
    """Return the settings in an encoder's files, by name. Raises ModelLoadError for a model that cannot run."""
    config = json_object(files, "config.json")
    length = json_object(files, _LENGTH)
    names = _modules(files)
    prompts = json_object(files, _PROMPTS)
    if prompts.get("default_prompt_name"):
        raise ModelLoadError(f"{_PROMPTS}: a default prompt is not supported: let callers put it before their texts")
    width = whole_number(config, "hidden_size", "dim")
    return Embedder(
        context_window=min(num_positions(config), length.get("max_seq_length") or 1 << 31),
        width=width,
        pooling=_pooling(json_object(files, _POOLING_FILE)) if names else Pooling.MEAN,
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
    tokenizer: Tokenizer, embedder: Embedder, source: EmbedInput, *, truncate: bool = False
) -> EmbedTokens:
    """Return each input as tokens.

    ``truncate``: inputs longer than the model's context window are cut at their end; the special tokens around a text
    stay. Raises InvalidRequest with the first input that has no tokens, has an id outside the vocabulary, or is too
    long (code ``context_length_exceeded``), and if all inputs together have more than MAX_TOKENS_TOGETHER.
    """
    if source.texts is not None:
        param = "input.texts"
        found = [
            text_tokens(tokenizer, embedder, text, f"{param}[{i}]", truncate=truncate)
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
    inputs = embed_inputs(model.tokenizer, embedder, request.input, truncate=request.truncate)
    payload = EmbedPayload(input=request.input, dimensions=request.dimensions, truncate=request.truncate)
    return Prepared(payload, inputs.num_tokens)


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
