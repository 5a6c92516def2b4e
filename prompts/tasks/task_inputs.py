"""The description of how one task's requests become tokens, and of which model folders serve the task."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from headrace.prompts.grammar import Grammars
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.store.db.database import Database
    from headrace.store.registry.models import ModelVersion
    from headrace.store.settings import Settings

RequestT = TypeVar("RequestT", bound=JobOrder)

ReadFile: TypeAlias = Callable[[str], bytes]
"""Returns the bytes of a stored model file by its digest."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The payload to store, and the cost: the tokens of the input, and the most tokens that may be generated."""

    payload: Strict
    num_tokens: int
    max_tokens: int = 0


class InputModel(Protocol):
    """The model version that a request is prepared for. Each part is loaded when it is first asked for, which blocks.

    ``context_window`` is the model's own. ``window`` is less where the workers' KV pools hold less.
    """

    @property
    def context_window(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def grammars(self) -> Grammars: ...
    @property
    def sampling(self) -> SamplingDefaults: ...
    @property
    def settings(self) -> Any:
        """What ``TaskInputs.read_settings`` returned for the version."""
        ...

    def is_compiled(self, kind: str, text: str) -> bool:
        """Return True if the grammar is compiled already. Reads nothing."""
        ...


def _every_folder(_config: Mapping[str, Any]) -> bool:
    return True


def no_folder(_config: Mapping[str, Any]) -> bool:
    """Return False, for a task that other tasks' versions serve."""
    return False


def no_settings(_version: "ModelVersion", _read_file: ReadFile) -> None:
    """Read nothing: the settings are those of the version's own task."""


@dataclass(frozen=True, slots=True)
class TaskInputs(Generic[RequestT]):
    """How requests of one task become tokens.

    ``prepare`` checks a request against the model. It raises InvalidRequest, ModelLoadError, Unavailable.
    ``cut_to_length`` is called for long requests before a policy reads them: it returns the request, shortened if the
    request allows that, or raises InvalidRequest. ``is_quick`` is False if the preparation may take long.
    ``read_settings`` reads what the task needs of a version's files, once for each version.
    """

    spec: TaskSpec
    prepare: Callable[[RequestT, InputModel, PinnedPolicy | None], Prepared]
    cut_to_length: Callable[[RequestT, InputModel], RequestT]
    is_quick: Callable[[RequestT, InputModel], bool]
    read_settings: Callable[["ModelVersion", ReadFile], Any]
    is_folder: Callable[[Mapping[str, Any]], bool] = _every_folder
    """True if a model folder with this ``config.json`` serves the task."""

    unfit_classes: re.Pattern[str] | None = None
    """Class names of such a folder that the task cannot compute, although the type of the model is its own. The weights
    would load, and answer with noise or without their last layer."""

    complete: Callable[[RequestT, str, "Settings", "Database"], RequestT] | None = None
    """Returns the request of a tenant with what the file that it names holds, before it is prepared; once done, the
    same request. Blocks. Raises NotFound, InvalidRequest, Unavailable. Such a request is not quick."""

    folder_files: tuple[str, ...] = ()
    """Small files of such a folder that the registry stores, beside those of the tokenizer."""

    folder_weights: tuple[str, ...] = ()
    """Files with weights beside those of the model; a folder may lack them. They count for its digest."""

    check_folder: Callable[["Path"], None] | None = None
    """Raises ModelLoadError for such a folder that must not be registered."""

    folder_window: Callable[[Mapping[str, bytes]], int] | None = None
    """Returns the context window by the folder's small files. None: ``models.families`` knows it."""

    has_any_files: bool = False
    """True if a folder of any files serves the task, and all of them count for its digest. Where no ``config.json``
    says so, the folder is registered with the task's name."""

    has_tokenizer: Callable[[Mapping[str, Any]], bool] = _every_folder
    """False if a folder with this ``config.json`` has no tokenizer, because its inputs are no texts."""
