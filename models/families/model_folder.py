"""A model folder: its files, its digest, and the facts that the registry stores. No tensors.

Pickled weights are refused, because loading them runs code. File names in an index and links must stay in the folder.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.models.families.registry import read_architecture
from headrace.prompts.tasks.registry import TASK_INPUTS, inputs_of_folder
from headrace.prompts.tasks.task_inputs import TaskInputs
from headrace.prompts.tokenizer import TOKENIZER_FILES, load_tokenizer
from headrace.store.errors import CannotLoadHere, ModelLoadError
from headrace.store.registry.models import ModelVersion

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises ModelLoadError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path} is missing: a model folder needs it") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object")
    return value


def _plain_name(name: object) -> str:
    """Return the name of a shard. Raises ModelLoadError if it points outside the folder."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ModelLoadError(f"{INDEX_FILE} names {name!r}, which is no safetensors file of its folder")
    return name


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model folder, sorted.

    Raises ModelLoadError if there are none, or the index names a file that is missing or outside the folder.
    """
    if (folder / INDEX_FILE).exists():
        shards = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelLoadError(f"{folder / INDEX_FILE} has no weight_map")
        files = sorted({folder / _plain_name(name) for name in shards.values()})
    else:
        files = [folder / SINGLE_FILE]
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return files
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED)
    if pickled:
        raise ModelLoadError(f"{folder} holds pickled weights ({pickled[0]}): convert them to safetensors first")
    packed = sorted(path.name for path in folder.glob("*.gguf"))
    if packed:
        raise ModelLoadError(
            f"{folder} holds GGUF weights ({packed[0]}), and Headrace's engine reads safetensors alone: register the "
            "server that runs the file with `--engine openai --url`, or give safetensors"
        )
    raise ModelLoadError(f"{folder} has no {', '.join(missing)}")


def check_folder(folder: Path) -> Path:
    """Return the folder. Raises ModelLoadError if it is none, or has a link out of it, whose target can change."""
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder")
    home = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise ModelLoadError(f"{path} is a link out of its folder: copy the files there (cp -rL)")
    return folder


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The facts that the registry stores of a folder. ``files`` are the small files that the API reads, by name."""

    runner: str
    digest: str
    context_window: int
    files: dict[str, bytes]


def task_inputs(folder: Path) -> TaskInputs[Any]:
    """Return the inputs of the task of the model. Raises ModelLoadError without a ``config.json``."""
    return inputs_of_folder(_config(folder))


def _config(folder: Path) -> dict[str, Any]:
    """Return what names the folder's model: ``config.json``, or of a pipeline of several ``model_index.json``."""
    index = folder / "model_index.json"
    return read_json(index if index.is_file() else folder / "config.json")


def _small_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the tokenizer and configuration files in the folder."""
    has_config = any((folder / name).is_file() for name in ("config.json", "model_index.json"))
    known = (*TOKENIZER_FILES, *(task_inputs(folder).folder_files if has_config else ()))
    return tuple(name for name in known if (folder / name).is_file())


def _other_weights(folder: Path) -> tuple[str, ...]:
    """Return the names of weights that the model's task may have beside those of the model."""
    return task_inputs(folder).folder_weights if (folder / "config.json").is_file() else ()


def small_files(folder: Path) -> dict[str, bytes]:
    """Return the tokenizer and configuration files of a model folder, by name."""
    return {name: (folder / name).read_bytes() for name in _small_names(folder)}


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and digests of the weight, configuration and tokenizer files.

    Raises ModelLoadError if the weights are missing, pickled or unreadable.
    """
    named = {path.name: path for path in weight_files(folder)}
    others = (INDEX_FILE, *_small_names(folder), *_other_weights(folder))
    named |= {name: folder / name for name in others if (folder / name).is_file()}
    try:
        with ThreadPoolExecutor() as pool:
            digests = dict(zip(named, pool.map(file_digest, named.values()), strict=True))
    except OSError as error:
        raise CannotLoadHere(f"{folder} cannot be read: {error}") from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def all_files_digest(folder: Path) -> str:
    """Return the SHA-256 over the paths and digests of all files below the folder. Raises ModelLoadError without any.

    Compiled Python files do not count, because they appear when a module of the folder is imported.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "__pycache__"]
    if not paths:
        raise ModelLoadError(f"{folder} has no files: leave it out if the task needs none")
    home = folder.resolve()
    for path in paths:
        if not path.resolve().is_relative_to(home):
            raise ModelLoadError(f"{path} is a link out of its folder: copy the files there (cp -rL)")
    try:
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
    except OSError as error:
        raise CannotLoadHere(f"{folder} cannot be read: {error}") from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path) -> ModelFiles:
    """Read a model folder for registration.

    Raises ModelLoadError, with one sentence, if a file is missing or the model cannot run here.
    """
    found = check_model(folder)
    has_any_files = task_inputs(folder).has_any_files
    return replace(found, digest=all_files_digest(folder) if has_any_files else folder_digest(folder))


def check_model(folder: Path) -> ModelFiles:
    """Return the facts of a model folder without the digest, for which all weights are read. Raises as ``describe``."""
    check_folder(folder)
    config = _config(folder)
    files = small_files(folder)
    task = inputs_of_folder(config)
    if task.check_folder is not None:
        task.check_folder(folder)
    if task.folder_window is not None:
        of_texts = config.get("text_config") or config  # a model of images and texts has its vocabulary there
        vocab_size, context_window = of_texts.get("vocab_size", 0), task.folder_window(files)
    else:
        model = read_architecture(folder, config).config
        vocab_size, context_window = model.vocab_size, model.context_window
    if task.has_tokenizer(config) and (num_tokens := load_tokenizer(files).vocab_size) > vocab_size:
        raise ModelLoadError(f"{folder}: the tokenizer has {num_tokens} tokens, the model {vocab_size}")
    if not task.has_any_files:
        weight_files(folder)
    return ModelFiles(task.spec.runner, "", context_window, files)


def registered_folder(version: ModelVersion) -> Path:
    """Return a version's folder. Raises ModelLoadError if it is missing or changed since it was registered."""
    folder = Path(version.source)
    if not folder.is_dir():
        raise CannotLoadHere(f"{version.model}@{version.version}: {folder} is not a folder on this machine")
    check_folder(folder)
    expected = version.engine.weights_digest if version.engine.is_external else version.digest
    digest = all_files_digest(folder) if TASK_INPUTS[version.task].has_any_files else folder_digest(folder)
    if digest != expected:
        raise ModelLoadError(
            f"{version.model}@{version.version}: the files in {folder} are not the ones that were registered; "
            "restore them or register the folder as a new version"
        )
    return folder
