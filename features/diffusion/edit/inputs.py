"""How requests for changed pictures are checked: the header of a picture before the job is stored, its pixels later."""

from headrace.features.diffusion.edit.task import IMAGE_EDIT
from headrace.features.diffusion.order_inputs import preparing
from headrace.features.diffusion.picture_inputs import filled, with_pictures
from headrace.features.diffusion.pictures import EditOrder
from headrace.prompts.tasks.task_inputs import InputModel, TaskInputs, no_folder, no_settings
from headrace.store.payloads.job_payload import JobOrder


def _is_read(request: JobOrder, _model: InputModel) -> bool:
    return isinstance(request.input, EditOrder) and request.input.picture_size is not None


PART = TaskInputs(
    spec=IMAGE_EDIT,
    prepare=preparing(IMAGE_EDIT, filled),
    cut_to_length=lambda request, _model: request,
    is_quick=_is_read,
    read_settings=no_settings,
    is_folder=no_folder,
    complete=with_pictures,
)
