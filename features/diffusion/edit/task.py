"""The task ``image_edit``: a picture and a prompt in, changed pictures out. The models of image_generate serve it."""

from dataclasses import replace
from typing import Any, Final, Self

from pydantic import PrivateAttr

from headrace.features.diffusion.generate.task import IMAGE_GENERATE
from headrace.features.diffusion.pictures import MOST_TOKENS, EditOrder, PictureOutput, diffusion_spec
from headrace.store.payloads.conversation import EXAMPLE_IMAGE, MAX_IMAGE_BYTES

MOST_FORM_BYTES: Final = 2 * MAX_IMAGE_BYTES
"""Of a form: a picture and its mask. As JSON they are a third longer."""

_SPEC = diffusion_spec(
    "image_edit",
    EditOrder,
    PictureOutput,
    {"prompt": "a mill in winter", "images": [EXAMPLE_IMAGE], "size": "64x64", "steps": 4},
    MOST_TOKENS,
)


class ImageEditRequest(_SPEC.request):  # type: ignore[name-defined, misc]  # made of the declared task
    """The body of ``POST /v1/jobs`` for the task image_edit."""

    _sha256: tuple[str, ...] = PrivateAttr(())

    def with_sha256(self, digests: tuple[str, ...]) -> Self:
        """Return the request with the digests of pictures that came with it."""
        found: Self = self.model_copy()
        found._sha256 = digests
        return found

    def digest_fields(self) -> dict[str, Any]:
        """Return the digests of pictures that came with the request: their files have other ids each time."""
        if not self._sha256:
            return {}
        order = self.input.model_dump(mode="json", exclude={"images", "mask"})
        return {"input": {**order, "sha256": self._sha256}}


PART = IMAGE_EDIT = replace(
    _SPEC,
    request=ImageEditRequest,
    form_bytes=lambda _settings: MOST_FORM_BYTES,
    runner="",
    fake_runner="",
    served_by=(IMAGE_GENERATE.name,),
    urls=("/v1/images/edits",),
    purpose="",
    url_example=None,
)
