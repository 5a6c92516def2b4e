"""Downloads a model of the Hugging Face hub into a folder: the files of one commit, and no pickles or code."""

import argparse
import re
from pathlib import Path
from typing import Final

from headrace.store.errors import ModelLoadError

_ASKED: Final = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

WANTED: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""The files that a model needs: weights, configuration, tokenizer, templates."""

UNWANTED: Final = ("consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*")
"""The same weights in formats that nothing here reads."""


def add_hub_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a model of the hub."""
    parser.add_argument(
        "--hub", metavar="ORG/NAME[@REVISION]", help="instead of a SOURCE: download this model of the Hugging Face hub"
    )


def fetch(asked: str, into: Path) -> Path:
    """Download ``ORG/NAME@REVISION`` below ``into`` and return its folder, which the commit names; once.

    A revision is a branch, a tag or a commit; without it the main branch counts. HF_TOKEN, HF_ENDPOINT and the proxy
    variables mean what they mean to the hub's own client. Raises ModelLoadError.
    """
    found = _ASKED.fullmatch(asked)
    if found is None:
        raise ModelLoadError(f"--hub takes ORG/NAME or ORG/NAME@REVISION, and {asked!r} is neither")
    repository = found["repository"]
    try:
        from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - it comes with transformers, for workers

        commit = HfApi().model_info(repository, revision=found["revision"]).sha
        if commit is None:
            raise ModelLoadError(f"the hub names no commit of {asked}")
        folder = into / repository.replace("/", "--") / commit
        snapshot_download(
            repository, revision=commit, local_dir=folder, allow_patterns=[*WANTED], ignore_patterns=[*UNWANTED]
        )
    except ImportError as error:
        raise ModelLoadError("--hub needs the worker's packages: install headrace[worker]") from error
    except ModelLoadError:
        raise
    # The hub's client raises errors of its own, of httpx and of the system: each is told as one line.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(
            f"{asked} could not be downloaded from the hub: {reason} ({type(error).__name__}). For a gated model set "
            "HF_TOKEN; without a network bring a folder and give it as SOURCE"
        ) from error
    return folder
