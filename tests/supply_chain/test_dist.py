"""The files of a release, installed beside a project whose packages have the names of our folders."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from headrace.store.settings import child_environment
from supply_chain import dist
from tests.folders import reachable_folder

ROOT = Path(__file__).parents[2]
THEIRS = tuple(sorted(path.name for path in (ROOT / "headrace").iterdir() if path.is_symlink()))

pytestmark = [pytest.mark.timeout(600), pytest.mark.whole]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return dist.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def their_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a project that has packages of all these names."""
    project = tmp_path_factory.mktemp("mine")
    for name in THEIRS:
        (project / name).mkdir()
        (project / name / "__init__.py").write_text(f"OF = 'mine: {name}'\n")
    (project / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        f"[project]\nname = 'mine'\nversion = '1'\n[tool.setuptools]\npackages = {list(THEIRS)}\n"
    )
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", project / "dist", project)
    return next((project / "dist").glob("*.whl"))


def pip(python: Path | str, *arguments: Path | str) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_both_have_one_package_and_the_same_files_of_it(built: tuple[Path, Path]) -> None:
    archive, wheel = built
    with zipfile.ZipFile(wheel) as file:
        installed = {name for name in file.namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert {name.partition("/")[0] for name in installed} == {"headrace"}
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert installed <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]


@pytest.mark.full
@pytest.mark.parametrize("ours_first", [True, False])
def test_an_install_harms_nobody(built: tuple[Path, Path], their_wheel: Path, ours_first: bool) -> None:
    with reachable_folder() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        python = folder / "env" / "bin" / "python"
        packages = next((folder / "env" / "lib").glob("*/site-packages"))
        # What Headrace needs is that of this environment; Headrace itself is not, since its own link is not followed.
        (packages / "needed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
        for wheel in (built[1], their_wheel) if ours_first else (their_wheel, built[1]):
            pip(python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
        (work := folder / "work").mkdir()
        code = f"import {', '.join(THEIRS)}; print({' + '.join(f'{name}.OF' for name in THEIRS)})"
        said = subprocess.run([python, "-c", code], cwd=work, capture_output=True, text=True, check=True).stdout
        assert said.count("mine: ") == len(THEIRS)
        run_job(python, work)
        pip(python, "uninstall", "--yes", "mine")
        run_job(python, work)


def run_job(python: Path, folder: Path) -> None:
    """Run jobs on a stack of the installed wheel, in a folder of a user with files in our names."""
    for name in THEIRS:
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')\n")
    env = child_environment({"HEADRACE_HOME": str(folder.parent / "home"), "HEADRACE_API_PORT": "0"})
    for name in ("DATABASE_URL", "REDIS_URL"):
        env.pop(name, None)
    command = [python.with_name("headrace"), "demo", "--model", "fake"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 webhooks received" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("tag", "heading", "said"),
    [
        ("v1.2.0", "## 1.2.0 – 2026-12-03", None),
        ("v1.2.1", "## 1.2.0 – 2026-12-03", "has the version 1.2.0"),
        ("v1.2.0", "## 1.2.0 – not released yet", "no line"),
        ("v1.2.0", "## 1.20 – 2026-12-03", "no line"),
    ],
)
def test_a_tag_is_that_of_the_version_and_of_its_changes(tag: str, heading: str, said: str | None) -> None:
    found = dist.complaint(tag, "1.2.0", f"# Changelog\n\n{heading}\n")
    assert found == said or (said and said in (found or ""))
