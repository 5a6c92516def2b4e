"""Registration of versions for a task that a ``headrace.tasks.Task`` declares: a folder of any files, or no files."""

import argparse
from pathlib import Path

from headrace.models.external_registration import engine_of
from headrace.models.families.model_folder import all_files_digest, check_folder
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError
from headrace.store.registry.models import ModelVersion, register_version
from headrace.store.tasks.own_task import OwnTaskSpec
from headrace.store.tasks.registry import TASKS


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a task of another package."""
    parser.add_argument("--task", metavar="NAME", help="a task of an installed package, which the folder serves")
    parser.add_argument("--source", dest="folder", metavar="SOURCE", help="the folder, instead of the second word")


def take_source(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Let ``--source`` be the source, and end the process unless the options name what to register."""
    if sum(one is not None for one in (options.folder, options.source, options.hub)) > 1:
        parser.error("give the SOURCE once")
    options.source = options.source or options.folder
    if not (options.engine or options.task) and bool(options.source or options.hub) == bool(options.fake):
        parser.error("give a SOURCE folder, --hub or --fake")


def register_own(db: Database, options: argparse.Namespace, *, actor: str) -> ModelVersion:
    """Register a version for the task that the options name. The same files give the same version again.

    Raises ModelLoadError, InvalidRequest.
    """
    task = TASKS.get(options.task)
    if not isinstance(task, OwnTaskSpec):
        known = ", ".join(task.name for task in TASKS.values() if isinstance(task, OwnTaskSpec)) or "none is installed"
        raise ModelLoadError(
            f"no package that is installed here has a task {options.task} (known: {known}); for Headrace's own tasks "
            "leave --task out, because the folder names its task"
        )
    others = (options.sampling, options.golden, options.base, options.fake, engine_of(options))
    if options.dtype != "auto" or any(one is not None for one in others):
        raise ModelLoadError("with --task give a name and a folder alone: the package's runner decides all else")
    return register_folder(db, options.name, options.source, task, actor=actor)


def register_folder(db: Database, name: str, source: str | None, task: OwnTaskSpec, *, actor: str) -> ModelVersion:
    """Register a folder for a task. None: a version without files, which is ready at once. Raises ModelLoadError."""
    runner = folder = digest = task.fake_runner
    if source is not None:
        path = check_folder(Path(source).resolve())
        runner, folder, digest = task.runner, str(path), all_files_digest(path)
    return register_version(
        db,
        model=name,
        runner=runner,
        source=folder,
        digest=digest,
        dtype="auto",
        context_window=task.declared.most_tokens,
        actor=actor,
    )
