"""How requests for pictures are checked and counted, and which folders make pictures."""

from headrace.features.diffusion.generate.task import IMAGE_GENERATE
from headrace.features.diffusion.model_folder import (
    SMALL_FILES,
    check_folder,
    makes_pictures,
    most_tokens,
    settings_for,
)
from headrace.features.diffusion.picture_inputs import filled, preparing
from headrace.prompts.tasks.task_inputs import InputModel, TaskInputs
from headrace.store.payloads.job_payload import JobOrder


def check_order(request: JobOrder, model: InputModel) -> JobOrder:
    """Return the request; raise InvalidRequest if the model cannot make such a picture."""
    filled(request.input, model)  # type: ignore[arg-type]
    return request


PART = TaskInputs(
    spec=IMAGE_GENERATE,
    prepare=preparing(IMAGE_GENERATE),
    cut_to_length=check_order,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=makes_pictures,
    folder_files=SMALL_FILES,
    check_folder=check_folder,
    folder_window=most_tokens,
    has_any_files=True,
    has_tokenizer=lambda _config: False,
)
