"""Loads a registered LoRA adapter for the runner of its base."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headrace.models.engine.requests import Adapter
from headrace.models.families.lora import adapter_digest, read_adapter
from headrace.models.families.model_folder import read_json
from headrace.models.families.registry import Architecture, read_architecture
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.errors import ModelLoadError


def load_adapter(runner: TorchRunner, folder: Path, *, base: Path, digest: str) -> Adapter:
    """Return the adapter in ``folder`` for a runner of the model in ``base``. May be called beside a running step.

    Raises ModelLoadError if the files are missing, are not those with ``digest``, or do not fit the base.
    """
    check_files(folder, digest)
    # In a temporary thread, as ``torch_load.runner_for`` and for its reason.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        layers = loader.submit(read_adapter, folder, base_architecture(base)).result()
        return loader.submit(runner.model.pack_adapter, digest, layers).result()


def check_files(folder: Path, digest: str) -> None:
    """Raise ModelLoadError unless the files of an adapter have this digest."""
    if adapter_digest(folder) != digest:
        raise ModelLoadError(
            f"the adapter's files in {folder} are not the ones that were registered; restore them or register the "
            "folder as a new version"
        )


def base_architecture(folder: Path) -> Architecture:
    """Return the family and the configuration of a base. Raises ModelLoadError."""
    return read_architecture(folder, read_json(folder / "config.json"))
