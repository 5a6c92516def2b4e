"""One run of a diffusers pipeline, step by step: it can be stopped after each step, saved, and gone on with later.

    run from the start   encode ──▶ noise ──▶ step 1 ──▶ … ──▶ step 20 ──▶ … ──▶ step 50 ──▶ decode
    gone on with         encode ──▶ noise ──▶ passed over ──▶ latents of step 20, then steps 21 to 50 ──▶ decode

A pipeline that goes on runs its own code from the beginning, so it works for every pipeline with
``callback_on_step_end``, of pictures and of video. What comes before the loop is computed again, by the same seed. In
the steps that are passed over the model is asked once, for the shape of its output, and the scheduler does nothing.
Then the latents, the scheduler and the random generator are set to what was saved. The bytes of the result are those of
an undisturbed run.

A saved state is in safetensors: tensors, and numbers as JSON. It is never pickled. It names the versions of the
libraries and the device: a worker that differs in these begins anew.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, Final

import diffusers
import numpy as np
import safetensors.torch
import torch

from headrace.features.diffusion.steps import OnStep, Step
from headrace.store.errors import ModelLoadError

# Of numpy and of its own renamed arguments, in every run.
warnings.filterwarnings("ignore", module=r"diffusers\.")

_DENOISERS: Final = ("unet", "transformer", "transformer_2", "prior")

Numbers = dict[str, Any]
"""Values of a scheduler by name, as JSON; a tensor is ``{"tensor": key}``."""


class CannotSave(Exception):
    """The state of this pipeline has a value that is neither a number nor a tensor: its runs are not gone on with."""


@dataclass(frozen=True, slots=True)
class Denoising:
    """A pipeline and the place where it runs. Runs come one after another.

    ``made_by``: what must be the same for a state to be gone on with.
    """

    pipeline: Any
    made_by: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ModelLoadError unless the pipeline can be stopped after a step."""
        if "callback_on_step_end" not in inspect.signature(self.pipeline.__call__).parameters:
            name = type(self.pipeline).__name__
            raise ModelLoadError(f"{name} has no `callback_on_step_end`, so a job of it could not be stopped")

    def run(
        self,
        arguments: Mapping[str, Any],
        generator: "torch.Generator",
        on_step: OnStep,
        resumed: bytes | None = None,
    ) -> Any:
        """Run the pipeline with these arguments; return what it returns.

        ``resumed``: a state that ``Step.state`` returned, of a run with the same arguments and seed. One that was made
        elsewhere is passed over.
        """
        start = None if resumed is None else self._opened(resumed)
        can_save: bool | None = None

        def ended(pipeline: Any, number: int, _timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
            if start is not None and number + 1 <= start.done:
                if number + 1 < start.done:
                    return found
                patched.close()
                start.put(pipeline.scheduler, generator)
                return {**found, "latents": start.latents.to(found["latents"])}
            nonlocal can_save
            if can_save is None:  # a scheduler may get values at its first step
                can_save = self._can_save()
            total = int(getattr(pipeline, "num_timesteps", 0)) or number + 1
            state = partial(self._saved, number + 1, found, generator) if can_save else None
            on_step(Step(number + 1, total, state, found["latents"]))
            return found

        with ExitStack() as patched, torch.inference_mode():
            if start is not None:
                patched.enter_context(_passed_over(self.pipeline))
            return self.pipeline(
                **arguments,
                generator=generator,
                callback_on_step_end=ended,
                callback_on_step_end_tensor_inputs=["latents"],
            )

    def _can_save(self) -> bool:
        """Return whether runs of this pipeline can be gone on with, by its scheduler."""
        try:
            _numbers_of(self.pipeline.scheduler, {})
        except CannotSave:
            return False
        return True

    def _saved(self, done: int, found: Mapping[str, Any], generator: "torch.Generator") -> bytes:
        tensors = {"latents": found["latents"], "generator": generator.get_state()}
        numbers = _numbers_of(self.pipeline.scheduler, tensors)
        about = {"done": done, "made_by": self._made_by(), "scheduler": numbers}
        about["strides"] = {name: one.stride() for name, one in tensors.items()}
        plain = {name: one.detach().cpu().clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
        return safetensors.torch.save(plain, {"about": json.dumps(about)})

    def _opened(self, state: bytes) -> "_Start | None":
        """Return where to go on; None if another kind of worker has saved it."""
        header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
        about = json.loads(header["__metadata__"]["about"])
        if about["made_by"] != self._made_by():
            return None
        strides = about["strides"]
        tensors = {name: _laid_out(one, strides[name]) for name, one in safetensors.torch.load(state).items()}
        return _Start(about["done"], tensors, about["scheduler"])

    def _made_by(self) -> dict[str, str]:
        device = self.pipeline.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        libraries = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        return {**libraries, "device": name, "threads": str(torch.get_num_threads()), **self.made_by}


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run goes on: after step ``done``."""

    done: int
    tensors: Mapping[str, Any]
    scheduler: Numbers

    @property
    def latents(self) -> Any:
        return self.tensors["latents"]

    def put(self, scheduler: Any, generator: "torch.Generator") -> None:
        """Set scheduler and generator to what was saved."""
        generator.set_state(self.tensors["generator"])
        device = {name: one.device for name, one in vars(scheduler).items() if isinstance(one, torch.Tensor)}
        for name, value in self.scheduler.items():
            setattr(scheduler, name, self._value(value, device.get(name, self._device(scheduler, name))))

    def _device(self, scheduler: Any, _name: str) -> Any:
        timesteps = getattr(scheduler, "timesteps", None)
        return timesteps.device if isinstance(timesteps, torch.Tensor) else "cpu"

    def _value(self, value: Any, device: Any) -> Any:
        if isinstance(value, list):
            return [self._value(one, device) for one in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return self.tensors[value["tensor"]].to(device)
        return self.tensors[value["array"]].numpy() if "array" in value else tuple(value["tuple"])


def _laid_out(tensor: Any, strides: list[int]) -> Any:
    """Return the tensor as it lay in memory: convolutions round differently if the channels lie last."""
    return tensor if 0 in strides else torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _numbers_of(scheduler: Any, tensors: dict[str, Any]) -> Numbers:
    """Return the values of a scheduler; put its tensors into ``tensors``. Raises CannotSave."""

    def written(value: Any, key: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor):
            tensors[key] = value
            return {"tensor": key}
        if isinstance(value, np.ndarray):
            tensors[key] = torch.from_numpy(value.copy())
            return {"array": key}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, list):
            return [written(one, f"{key}.{index}") for index, one in enumerate(value)]
        if isinstance(value, tuple) and all(isinstance(one, int | float | str) for one in value):
            return {"tuple": list(value)}
        raise CannotSave(f"{type(scheduler).__name__}.{key} is a {type(value).__name__}")

    names = [name for name in vars(scheduler) if name not in ("config", "_internal_dict")]
    return {name: written(getattr(scheduler, name), name) for name in names}


@contextmanager
def _passed_over(pipeline: Any) -> Any:
    """Let the model answer once and then repeat it, and the scheduler leave the latents as they are."""
    scheduler = pipeline.scheduler

    @wraps(scheduler.step)  # pipelines read from its signature whether it takes a generator
    def step(_output: Any, _timestep: Any, sample: Any, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        return SimpleNamespace(prev_sample=sample) if return_dict else (sample, sample)

    known: dict[str, Any] = {}
    models = [(name, getattr(pipeline, name, None)) for name in _DENOISERS]
    found = [(name, model) for name, model in models if isinstance(model, torch.nn.Module)]
    for name, model in found:
        model.forward = _once(model.forward, known, name)
    scheduler.step = step
    try:
        yield
    finally:
        for _, model in found:
            del model.forward
        del scheduler.step


def _once(forward: Callable[..., Any], known: dict[str, Any], name: str) -> Callable[..., Any]:
    def answer(*given: Any, **named: Any) -> Any:
        if name not in known:
            known[name] = forward(*given, **named)
        return known[name]

    return answer
