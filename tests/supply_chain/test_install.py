"""What the installer asks uv for, and that uv asks where pip is told to. The real uv runs in every fresh ``make``."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supply_chain import install

# It writes its arguments down, and is refused by PyTorch's index where a file says so.
UV = f"""#!{sys.executable}
import os, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "asked.txt").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if "--torch-backend" in sys.argv and (here / "unreachable").exists():
    sys.exit("error: Request failed\\n  cause: dns error")
if "--excludes" in sys.argv:
    (here / "excluded.txt").write_text(Path(sys.argv[sys.argv.index("--excludes") + 1]).read_text())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with an uv that installs nothing."""
    (tmp_path / "supply_chain").mkdir()
    (tmp_path / "locks").mkdir()
    programs = tmp_path / "build" / "uv" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(install.__file__, tmp_path / "supply_chain" / "install.py")
    pin = f"uv==1 \\\n    --hash=sha256:{'0' * 64}\n"
    (tmp_path / "locks" / "tools.txt").write_text(f"six==1 \\\n    --hash=sha256:1\n{pin}")
    (tmp_path / "build" / "uv" / "installed.txt").write_text(pin)
    (programs / "uv").write_text(UV)
    (programs / "uv").chmod(0o755)
    return tmp_path


def installed(checkout: Path, *options: str, wheel: str = "") -> tuple[str, list[list[str]]]:
    """Run the installer; return what it printed, and what uv was asked for."""
    # Without the packages of this environment it finds no torch.
    command = [sys.executable, *options, "-m", "supply_chain.install", "local", *([wheel] if wheel else [])]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=True)
    asked = (checkout / "build" / "uv" / "bin" / "asked.txt").read_text().splitlines()
    before = ["pip", "install", "--quiet", "--python", sys.executable]
    assert all(line.split()[: len(before)] == before for line in asked)
    return done.stdout, [line.split()[len(before) :] for line in asked]


LOCKED = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", "locks/local.txt"]
REST = ["--no-build-isolation", "--editable", ".[local]"]


def test_uv_chooses_the_build_of_torch_by_the_machine(checkout: Path) -> None:
    assert installed(checkout, "-S") == ("", [LOCKED, ["--torch-backend", "auto", *REST]])


def test_a_wheel_is_installed_as_a_stranger_would(checkout: Path) -> None:
    assert installed(checkout, "-S", wheel="/x/h.whl") == ("", [["--torch-backend", "auto", "/x/h.whl[local]"]])


def test_torch_comes_from_the_package_index_if_pytorchs_cannot_be_reached(checkout: Path) -> None:
    (checkout / "build" / "uv" / "bin" / "unreachable").touch()
    said, (*_, last) = installed(checkout, "-S")
    assert said.endswith("dns error\n")
    assert (last[0], last[2:]) == ("--excludes", REST)
    has_card = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
    assert (checkout / "build" / "uv" / "bin" / "excluded.txt").read_text() == ("" if has_card else "triton")


def test_a_torch_that_is_there_stays(checkout: Path) -> None:
    said, (_, last) = installed(checkout)
    assert (said, "--torch-backend" in last) == ("", False)


def test_uv_asks_where_pip_is_told_to(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.invalid/simple\nfind-links = /a\n  /b\n"
        "[install]\nindex-url = https://two.invalid/simple\n"
    )
    told = {
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": str(config),
        "PIP_EXTRA_INDEX_URL": "https://three.invalid/simple",
    }
    found = install.uv_environment(told)
    assert found["UV_DEFAULT_INDEX"] == "https://two.invalid/simple"
    assert found["UV_FIND_LINKS"] == "/a,/b"
    assert found["UV_INDEX"] == "https://three.invalid/simple"
    assert install.uv_environment(told | {"UV_INDEX": "mine"})["UV_INDEX"] == "mine"
