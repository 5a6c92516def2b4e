"""Pictures by the pipelines of diffusers: from a prompt, from a picture, and into the mask of a picture."""

import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import diffusers
import torch

from headrace.features.diffusion.denoising import Denoising
from headrace.features.diffusion.model_folder import ADAPTERS, DEFAULTS
from headrace.features.diffusion.picture_work import Source
from headrace.features.diffusion.pictures import DiffusionOrder, PictureOrder, size_of
from headrace.features.diffusion.steps import OnStep, Step
from headrace.models.tensors.precision import resolve_device, resolve_dtype
from headrace.prompts.vision.pictures import Picture
from headrace.store.errors import CannotLoadHere, ModelLoadError
from headrace.store.settings import Settings
from headrace.tasks import TaskError

log = logging.getLogger(__name__)

_KINDS: Final = {
    "text": diffusers.AutoPipelineForText2Image,
    "picture": diffusers.AutoPipelineForImage2Image,
    "mask": diffusers.AutoPipelineForInpainting,
}
_4D: Final = 4
_PACKED_DIMS: Final = 3


def load_pipeline(folder: Path, settings: Settings) -> "PipelinePainter":
    """Load the pipeline of a folder to the device of the settings. Raises ModelLoadError."""
    painter = PipelinePainter(loaded(_KINDS["text"], folder, settings))
    painter.denoising("text").check()
    return painter


def loaded(kind: Any, folder: Path, settings: Settings) -> Any:
    """Return the pipeline of a folder, which prints nothing, on the device of the settings. ``kind``: its class.

    Raises ModelLoadError.
    """
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = resolve_device(settings.device)
    name = "float32" if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
    diffusers.utils.logging.set_verbosity_error()
    torch.backends.cudnn.deterministic = True
    try:
        pipeline = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=resolve_dtype(name, device),
        )
        _fuse_adapters(pipeline, folder)
        pipeline = pipeline.to(device)
    except (ModelLoadError, CannotLoadHere):
        raise
    except (ImportError, MemoryError, torch.OutOfMemoryError) as error:
        raise CannotLoadHere(f"the pipeline in {folder} cannot be loaded here: {_said(error)}") from error
    except Exception as error:
        raise ModelLoadError(f"the pipeline in {folder} cannot be loaded: {_said(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fuse_adapters(pipeline: Any, folder: Path) -> None:
    """Change the weights by the LoRA adapters in the folder. Raises ModelLoadError for one of another model."""
    path = folder / DEFAULTS
    scale = json.loads(path.read_bytes()).get("lora_scale", 1.0) if path.is_file() else 1.0
    for adapter in sorted((folder / ADAPTERS).glob("*.safetensors")):
        if not hasattr(pipeline, "load_lora_weights"):
            raise ModelLoadError(f"{type(pipeline).__name__} takes no LoRA adapters: remove {folder / ADAPTERS}")
        pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name, local_files_only=True)
        if not pipeline.get_active_adapters():
            raise ModelLoadError(f"{adapter} changes no layer of {type(pipeline).__name__}")
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()


def arguments_of(pipeline: Any, order: DiffusionOrder, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline for an order: those that it takes. Raises TaskError for one it must have.

    ``own``: what orders of this kind have beside the others.
    """
    takes = inspect.signature(pipeline.__call__).parameters
    width, height = size_of(order.size) or (None, None)
    given = {
        "prompt": order.prompt,
        "negative_prompt": order.negative_prompt,
        "num_inference_steps": order.steps,
        "guidance_scale": order.guidance,
        "width": width,
        "height": height,
        **own,
    }
    known = {name: value for name, value in given.items() if value is not None}
    if "negative_prompt" in known and "negative_prompt" not in takes:
        raise TaskError(f"a model of {type(pipeline).__name__} takes no negative prompt: leave it out")
    return {name: value for name, value in known.items() if name in takes}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


class PipelinePainter:
    """A ``Painter``. One thread at a time calls it. The pipelines share the weights of the first one."""

    def __init__(self, pipeline: Any) -> None:
        self._first = pipeline
        self._pipelines: dict[str, Denoising] = {"text": self._quiet(pipeline)}

    @staticmethod
    def _quiet(pipeline: Any) -> Denoising:
        pipeline.set_progress_bar_config(disable=True)
        return Denoising(pipeline)

    def denoising(self, kind: str) -> Denoising:
        """Return the pipeline of a kind. Raises TaskError if this model has none."""
        if kind not in self._pipelines:
            try:
                self._pipelines[kind] = self._quiet(_KINDS[kind].from_pipe(self._first))
            except ValueError:
                name = type(self._first).__name__
                raise TaskError(f"a model of {name} cannot change a picture: take another model") from None
        return self._pipelines[kind]

    def paint(self, order: PictureOrder, source: Source, seed: int, on_step: OnStep, resumed: bytes | None) -> Picture:
        """See ``Painter``."""
        kind = "text" if source.picture is None else "picture" if source.mask is None else "mask"
        denoising = self.denoising(kind)
        own = {"image": source.picture, "mask_image": source.mask, "strength": getattr(order, "strength", None)}
        arguments = arguments_of(denoising.pipeline, order, own)
        # On the CPU, so that the noise is the same on every device.
        generator = torch.Generator().manual_seed(seed)

        def ended(step: Step) -> None:
            on_step(replace(step, preview=lambda: self._preview(denoising, order, step.latents)))

        found = denoising.run(arguments, generator, ended, resumed)
        if any(getattr(found, "nsfw_content_detected", None) or ()):
            raise TaskError("the model's safety checker refused the picture")
        return found.images[0]

    def _preview(self, denoising: Denoising, order: PictureOrder, latents: Any) -> Picture | None:
        """Return the picture of latents between; None for a pipeline whose latents have another form."""
        pipeline = denoising.pipeline
        width, height = size_of(order.size) or (0, 0)
        try:
            if latents.dim() == _PACKED_DIMS:
                latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)  # noqa: SLF001
            if latents.dim() != _4D:
                return None
            config = pipeline.vae.config
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
            decoded = pipeline.vae.decode(latents.to(pipeline.vae.dtype), return_dict=False)[0]
            return pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            log.warning("no_preview error=%s", type(error).__name__)
            return None
