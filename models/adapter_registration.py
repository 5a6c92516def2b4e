"""Registers a LoRA adapter: a version that has its base's tokenizer, number format and context window.

The adapter's tensors are compared with the base's configuration, which the registry holds, so the base's weights need
not be on this machine. The worker of the base computes the adapter's jobs (docs/lora.md).
"""

import argparse
import json
from pathlib import Path

from headrace.models.families.registry import Architecture, read_architecture
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.registry.models import ModelVersion, queue_name, read_file, register_version, resolve, set_sampling
from headrace.store.tasks.generate import GENERATE


def add_base_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes SOURCE an adapter."""
    parser.add_argument("--base", help="SOURCE is a LoRA adapter of this version: name, name@3 or name@alias")


def register_adapter_given(db: Database, options: argparse.Namespace, *, actor: str) -> ModelVersion:
    """Register the adapter that the options of a command line name. Raises as ``register_adapter``."""
    if options.engine or options.dtype != "auto" or options.fake or options.golden:
        raise InvalidRequest("--base needs SOURCE, the adapter's folder, and no --engine, --dtype, --golden or --fake")
    return register_adapter(db, options.name, Path(options.source), options.base, actor=actor)


def register_adapter(db: Database, name: str, folder: Path, base_name: str, *, actor: str) -> ModelVersion:
    """Register the adapter in ``folder``, with the base's sampling defaults. The same files for the same base give the
    same version again.

    Raises NotFound for the base, InvalidRequest for a base that has no adapters, and ModelLoadError for the files.
    """
    # Here, because it imports torch, which takes seconds.
    from headrace.models.families.lora import adapter_digest, read_adapter  # noqa: PLC0415 - imports torch

    base = resolve(db, base_name)
    _check_base(base, name)
    folder = folder.resolve()
    read_adapter(folder, _architecture(db, base))
    version = register_version(
        db,
        model=name,
        runner=base.runner,
        source=str(folder),
        digest=adapter_digest(folder),
        dtype=base.dtype,
        context_window=base.context_window,
        files={file: read_file(db, digest) for file, digest in base.files.items()},
        actor=actor,
        base=base,
    )
    if version.sampling.given() or not base.sampling.given():
        return version
    return set_sampling(db, version.model, version.version, base.sampling, actor)


def _check_base(base: ModelVersion, name: str) -> None:
    known = queue_name(base.model, base.version)
    if base.base is not None:
        raise InvalidRequest(f"{known} has no weights of its own: give its base, --base {base.base}", param="base")
    if base.engine.is_external:
        kind = base.engine.kind.value
        raise InvalidRequest(
            f"{known} runs on {kind}: register its adapter with --engine {kind} and --adapter, its name in the server",
            param="base",
        )
    if base.is_fake or base.runner != GENERATE.runner:
        raise InvalidRequest(f"{known} has no adapters: they are for models that generate text", param="base")
    if base.model == name:
        raise InvalidRequest(f"an adapter needs a name of its own: {name} is the base's", param="name")


def _architecture(db: Database, base: ModelVersion) -> Architecture:
    return read_architecture(Path(base.source), json.loads(read_file(db, base.files["config.json"])))
