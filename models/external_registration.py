"""Registers versions that an inference server runs: the server's address, what it must run, and the tokenizer's files.

url                       the operator's server; the folder of the tokenizer's files is enough
a folder of the weights   each worker starts a server on it, after its files were compared
"""

import argparse
import hashlib
import json
from pathlib import Path

from headrace.models.families.model_folder import check_folder, folder_digest, small_files, task_inputs
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.registry.engine_spec import EXTERNAL_KINDS, EngineKind, EngineSpec, engine_digest, engine_spec
from headrace.store.registry.models import ModelVersion, register_version
from headrace.store.tasks.generate import GENERATE
from headrace.store.tasks.own_task import OWN_TASK_ADVICE

_WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_OPTIONS = (
    *("url", "served_model", "adapter", "revision", "quantization", "context_window", "batch_invariant"),
    *("accepts", "continues", "router"),
)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an inference server."""
    parser.add_argument("--engine", choices=[kind.value for kind in EXTERNAL_KINDS], help="the server that runs it")
    parser.add_argument("--url", help="the server's address; without it each worker starts a server of its own")
    parser.add_argument("--served-model", help="the model's name in the server; by default NAME")
    parser.add_argument("--tokenizer", type=Path, help="the folder of the tokenizer's files; by default SOURCE")
    parser.add_argument("--adapter", help="the LoRA adapter of the server that requests go to")
    for name in ("revision", "quantization"):
        parser.add_argument(f"--{name}", help=f"the {name} that the server must say it has")
    parser.add_argument("--context-window", type=int, help="tokens that the server must take, prompt and answer")
    parser.add_argument("--batch-invariant", action="store_true", help="the server must be batch invariant")
    parser.add_argument("--accepts", action="append", choices=["images"], help="what it takes beside text")
    text = "it has vLLM's continue_final_message: a lost answer goes on, and does not start anew"
    parser.add_argument("--continues", action="store_true", help=text)
    parser.add_argument("--router", action="store_true", help="--url is a router's, with several vLLMs behind it")


def engine_of(options: argparse.Namespace) -> EngineSpec | None:
    """Return the engine that the options name; None: Headrace's own. Raises InvalidRequest."""
    given = {name: value for name in _OPTIONS if (value := getattr(options, name))}
    if options.engine is None:
        if stray := [*given, *(["tokenizer"] if options.tokenizer else [])]:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in stray)
            raise InvalidRequest(f"{names}: only with --engine, the server that runs the model")
        return None
    return engine_spec({"kind": options.engine, "served_model": options.name, **given})


def said_after_a_loss(engine: EngineSpec) -> str:
    """Return what becomes of an answer whose server or worker is lost, with the option that would change it."""
    if engine.after_a_loss == "goes on":
        return "goes on"
    return (
        "starts anew: give --continues for a server with vLLM's continue_final_message (vLLM, SGLang, and routers "
        "before them)"
    )


def register_external(
    db: Database, name: str, engine: EngineSpec, *, source: Path | None, tokenizer: Path | None, actor: str
) -> ModelVersion:
    """Register a version that a server runs. The same server's model and files give the same version again.

    ``source``: the folder of the weights. ``tokenizer``: the folder of the tokenizer's files, by default ``source``.
    Raises InvalidRequest for an option that is missing, ModelLoadError for files.
    """
    _check_parts(engine, source)
    if source is not None:
        source = check_folder(source).resolve()
        engine = engine.model_copy(update={"weights_digest": folder_digest(source)})
    folder = source if tokenizer is None else check_folder(tokenizer).resolve()
    files = _tokenizer_files(folder, engine)
    return register_version(
        db,
        model=name,
        runner=engine.kind.value,
        source=str(source or folder or engine.url),
        digest=_digest(engine, files),
        dtype="auto",
        context_window=_context_window(engine, files),
        files=files,
        actor=actor,
        engine=engine,
    )


def _check_parts(engine: EngineSpec, source: Path | None) -> None:
    if engine.kind is EngineKind.OPENAI and engine.url is None:
        raise InvalidRequest("a worker cannot start a server of the kind openai: give its address with --url")
    if engine.url is None and source is None:
        raise InvalidRequest("give --url, the server's address, or a SOURCE folder on which workers start the server")


def _tokenizer_files(folder: Path | None, engine: EngineSpec) -> dict[str, bytes]:
    """Return the tokenizer's files, which make prompts and texts on our side. Raises if they are needed and missing."""
    if folder is None:
        if engine.kind is EngineKind.OPENAI:
            return {}
        raise InvalidRequest(
            "give --tokenizer, a folder with the model's tokenizer.json, tokenizer_config.json, config.json and "
            "generation_config.json: `hf download ORG/NAME --include '*.json' --local-dir FOLDER` fetches them"
        )
    files = small_files(folder)
    if "config.json" in files and (task := task_inputs(folder).spec) is not GENERATE:
        raise ModelLoadError(
            f"{folder} serves the task {task.name}, and Headrace asks an inference server for generated text alone: "
            "leave out --engine and its options, so that Headrace's own engine runs it"
        )
    if engine.kind is not EngineKind.OPENAI and json.loads(files.get("config.json", b"{}")).get("is_encoder_decoder"):
        raise ModelLoadError(
            f"{folder} is of an encoder-decoder, and Headrace sends the tokens of a prompt to decoders alone; "
            f"{OWN_TASK_ADVICE}"
        )
    try:
        load_tokenizer(files)
    except ModelLoadError as error:
        raise ModelLoadError(f"{folder}: {error.message}") from error
    return files


def _context_window(engine: EngineSpec, files: dict[str, bytes]) -> int:
    """Return the tokens that a request may have: as given, else the window of ``config.json``."""
    if engine.context_window is not None:
        return engine.context_window
    config = json.loads(files.get("config.json", b"{}"))
    for part in (config, config.get("text_config")):
        found = [part[name] for name in _WINDOW_NAMES if isinstance(part.get(name), int)] if part else []
        if found:
            return int(found[0])
    raise InvalidRequest("the files do not say how many tokens the model takes: give --context-window")


def _digest(engine: EngineSpec, files: dict[str, bytes]) -> str:
    return engine_digest(engine, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
