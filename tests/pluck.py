"""Remove features from a copy of the tree and check the rest: ``make pluck SEED=3`` or ``FEATURES="audit console"``.

The seed draws three, and with a feature go those that import it along a line drawn in ``pyproject.toml``. What goes is
the folder, its line in ``headrace/assembly.py``, the tests in ``tests/features/NAME``, and test files of other features
that import it. Then the walls, the types and the suite must pass. ``--quick`` runs the tests of what features plug
into, and collects all others.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from headrace.assembly import FEATURES
from headrace.store.settings import child_environment

ROOT = Path(__file__).parents[1]
HELD = {
    "encoders",
    "files",
    "flows",
    "hosts",
    "images",
    "limits",
    "openai",
    "policy",
    "response_cache",
    "responses",
    "retention",
    "retrieval",
    "rollouts",
}
"""Features that tests of the core use as examples, and rollouts, which flows use: they are not drawn yet."""
FOLDERS = sorted({name.partition(".")[0] for name in FEATURES})
IMPORTED = re.compile(r"^from ((?:headrace|tests)\.features\.[\w.]+) import", re.MULTILINE)
QUICK = """cli/client features headrace migrations models/runners producer_api/access producer_api/caches
    producer_api/http producer_api/reads producer_api/server producer_api/tasks prompts/tasks store supply_chain
    workers/dispatcher workers/tasks test_docs.py test_extending.py test_security.py test_walls.py"""


def with_importers(chosen: set[str]) -> set[str]:
    """Return the features and those that import them along drawn lines."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    drawn = " ".join(line for contract in contracts for line in contract.get("ignore_imports", []))
    lines = re.findall(r"headrace\.features\.(\w+)\S* -> headrace\.features\.(\w+)", drawn)
    more = chosen | {importer for importer, imported in lines if imported in chosen}
    return chosen if more == chosen else with_importers(more)


def copy_tree(to: Path) -> None:
    """Copy what git tracks or would add; the environment and mypy's cache come from here."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and ((ROOT / name).is_symlink() or (ROOT / name).exists()):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    (to / ".venv").symlink_to(ROOT / ".venv")
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", to / ".mypy_cache")


def remove(feature: str, tree: Path) -> None:
    """Remove a feature's folders, and the lines that name it in the list of features and in the walls."""
    shutil.rmtree(tree / "features" / feature)
    shutil.rmtree(tree / "tests" / "features" / feature, ignore_errors=True)
    for name, line in (
        ("headrace/assembly.py", rf'^    "{feature}[".].*\n'),
        ("pyproject.toml", rf'^ *"headrace\.features\.{feature}\b.*\n'),
    ):
        file = tree / name
        file.write_text(re.sub(line, "", file.read_text(), flags=re.MULTILINE))


def remove_tests_between(tree: Path) -> None:
    """Remove test files of features that are left and import modules that are gone: they test two features together."""
    files = {file for file in (tree / "tests" / "features").rglob("*.py") if file.name != "conftest.py"}
    while True:
        unfit = {file for file in files if any(not is_there(name, tree) for name in IMPORTED.findall(file.read_text()))}
        if not unfit:
            return
        for file in unfit:
            file.unlink()
        files -= unfit


def is_there(module: str, tree: Path) -> bool:
    """Return True if the module of a feature or of its tests is in the tree."""
    path = tree / module.removeprefix("headrace.").replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def pytest_of(args: argparse.Namespace) -> Iterable[list[str]]:
    """Return the commands that run tests."""
    whole = ["pytest", "-rf", "-m", "not gpu and not whole"]
    if args.tests:
        return ([*whole, *args.tests.split()],)
    if not args.quick:
        return ([*whole, "-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"],)
    return ([*whole, "--collect-only", "-qqq", "--full"], [*whole, *(f"tests/{name}" for name in QUICK.split())])


def main() -> None:
    asked = argparse.ArgumentParser(prog="make pluck", description=__doc__)
    asked.add_argument("--seed", type=int, default=random.randrange(1000), help="draws three features")
    asked.add_argument("--features", nargs="*", choices=FOLDERS, help="these instead", metavar="FEATURE")
    asked.add_argument("--quick", action="store_true", help="a part of the tests: some minutes")
    asked.add_argument("--tests", default="", help="only these")
    args = asked.parse_args()
    removed = with_importers(set(args.features or random.Random(args.seed).sample(sorted({*FOLDERS} - HELD), 3)))
    what = f"without {', '.join(sorted(removed))}"
    sys.stdout.write(f"==> {what}\n")
    sys.stdout.flush()
    failed = []
    with tempfile.TemporaryDirectory(prefix="pluck-") as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        for feature in removed:
            remove(feature, tree)
        remove_tests_between(tree)
        env = child_environment({"PYTHONPATH": str(tree)})
        checks = [["lint-imports", "--no-logo"], ["mypy", "--no-error-summary", "--package", "headrace"]]
        for name, *rest in [*checks, *pytest_of(args)]:
            if subprocess.run([f".venv/bin/{name}", *rest], cwd=tree, env=env, check=False).returncode:
                failed.append(name)
    if failed:
        sys.exit(f'{what} fails: {", ".join(failed)}. Again: make pluck FEATURES="{" ".join(sorted(removed))}"')
    sys.stdout.write(f"==> pluck: ok {what}\n")


if __name__ == "__main__":
    main()
