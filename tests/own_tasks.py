"""A package with a task of its own for tests: what ``headrace new-task`` writes, installed without pip."""

from pathlib import Path

from headrace.cli.new_task import new_task


def installed(folder: Path, entry: str) -> Path:
    """Write what an installer would: the metadata of a package with this entry point. Return the folder."""
    facts = folder / "own_task-0.1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own-task\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text(f"[headrace.tasks]\n{entry}\n")
    return folder


def new_package(folder: Path, name: str) -> Path:
    """Write the package of ``headrace new-task`` as an installed one. A process finds it by PYTHONPATH."""
    new_task(name, folder)
    return installed(folder, f"{name} = {name}_task:TASK")
