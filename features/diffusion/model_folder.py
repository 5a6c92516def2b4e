"""What a version that makes pictures is: a folder of diffusers, or the address of a server of images.

model_index.json             the pipeline's class and its parts; weights in safetensors, no pickle, no code
generation_defaults.json     optional: what requests do not say, {"steps": 4, "guidance": 0, "size": "512x512"}
lora/*.safetensors           optional: LoRA adapters, which change the weights when they are loaded

config.json                  of a server: {"model_type": "headrace-image-server", "url": …, "model": …}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from headrace.features.diffusion.pictures import MAX_PIXELS, MAX_STEPS, SIZE, size_of
from headrace.prompts.folder_json import json_object
from headrace.store.errors import ModelLoadError

INDEX: Final = "model_index.json"
DEFAULTS: Final = "generation_defaults.json"
ADAPTERS: Final = "lora"
SERVER_TYPE: Final = "headrace-image-server"
SMALL_FILES: Final = (INDEX, DEFAULTS, "vae/config.json", "unet/config.json", "transformer/config.json")

_RUNS_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so", ".msgpack")
# Parts of the names of pipelines whose results are videos.
_OF_VIDEO = re.compile(
    "Video|Wan|LTX|Mochi|Latte|Allegro|AnimateDiff|SkyReels|EasyAnimate|Helios|AnyFlow|PIA|ConsisID|T2V|I2V|TI2VA|ToWorld"
)
_DEFAULT_EDGE = 1024


class Defaults(BaseModel):
    """What is done where a request does not say."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 30
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    size: Annotated[str, StringConstraints(pattern=SIZE)] | None = None
    negative_prompt: str | None = None
    lora_scale: Annotated[FiniteFloat, Field(ge=-10, le=10)] = 1.0
    """How much the adapters of the folder change."""


class MediaServerConfig(BaseModel):
    """A server of media, as the operator names it. ``url`` is without ``/v1``."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ImageServer(MediaServerConfig):
    """A server with OpenAI's images API."""

    model_type: Literal["headrace-image-server"]
    defaults: Defaults = Defaults()


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """Facts of a version. Width and height are multiples of ``multiple``. ``server``: None, it runs here."""

    width: int
    height: int
    multiple: int
    defaults: Defaults
    server: ImageServer | None = None


FAKE: Final = PictureSettings(64, 64, 8, Defaults(steps=4))
"""Of the version without weights."""


def makes_pictures(config: Mapping[str, Any]) -> bool:
    """Return True for the ``model_index.json`` of a pipeline of pictures, and the ``config.json`` of a server."""
    is_pipeline = "_diffusers_version" in config and not is_video_pipeline(config)
    return is_pipeline or config.get("model_type") == SERVER_TYPE


def is_video_pipeline(config: Mapping[str, Any]) -> bool:
    """Return True for the ``model_index.json`` of a pipeline of videos, by the name of its class."""
    name = str(config.get("_class_name", ""))
    return "_diffusers_version" in config and _OF_VIDEO.search(name) is not None


def check_folder(folder: Path) -> None:
    """Raise ModelLoadError for a folder with files that run code, or with parts that need such."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _RUNS_CODE and path.is_file():
            raise ModelLoadError(
                f"{path} may run code when it is loaded: keep the weights in safetensors alone, and remove this file"
            )
    if not (folder / INDEX).is_file():
        return
    index = json_object({INDEX: (folder / INDEX).read_bytes()}, INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise ModelLoadError(f"{INDEX} names a pipeline of the folder's own, which is code: it is not run")
    for name, part in index.items():
        if isinstance(part, list) and part[:1] not in ([None], ["diffusers"], ["transformers"], ["stable_diffusion"]):
            raise ModelLoadError(
                f"{INDEX}: the part {name} is of {part[0]!r}: diffusers and transformers are run alone"
            )


def settings_of(files: Mapping[str, bytes]) -> PictureSettings:
    """Return the facts of a folder by its small files. Raises ModelLoadError."""
    config = json_object(files, "config.json") if "config.json" in files else {}
    if config.get("model_type") == SERVER_TYPE:
        server = read_model(ImageServer, config, "config.json")
        edge = _size(server.defaults, _DEFAULT_EDGE, _DEFAULT_EDGE, 1)
        return PictureSettings(*edge, 1, server.defaults, server)
    defaults = read_model(Defaults, json_object(files, DEFAULTS) if DEFAULTS in files else {}, DEFAULTS)
    vae = json_object(files, "vae/config.json") if "vae/config.json" in files else {}
    scale = int(vae.get("spatial_compression_ratio") or 0)
    if not scale:
        blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [1, 1, 1, 1]
        scale = 2 ** (len(blocks) - 1)
    core = next((name for name in ("transformer/config.json", "unet/config.json") if name in files), None)
    model = {} if core is None else json_object(files, core)
    # Transformers read patches of latents, of 2 x 2 even where their configuration has the patch packed already.
    multiple = scale * max(2, int(model.get("patch_size") or 0)) if core and core.startswith("t") else max(scale, 8)
    sample = model.get("sample_size")
    height, width = sample if isinstance(sample, list) else (sample, sample)
    known = (int(width) * scale, int(height) * scale) if width and height else (_DEFAULT_EDGE, _DEFAULT_EDGE)
    return PictureSettings(*_size(defaults, *known, multiple), multiple, defaults)


def _size(defaults: Defaults, width: int, height: int, multiple: int) -> tuple[int, int]:
    """Return the size of requests without one. Raises ModelLoadError if it is not possible."""
    width, height = size_of(defaults.size) or (width, height)
    if width % multiple or height % multiple or width * height > MAX_PIXELS:
        raise ModelLoadError(
            f"{DEFAULTS}: the size {width}x{height} must be of multiples of {multiple}, and at most {MAX_PIXELS} pixels"
        )
    return width, height


def read_model(kind: Any, given: Mapping[str, Any], name: str) -> Any:
    """Return the fields of a JSON file as a model of pydantic. Raises ModelLoadError that names file and field."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ModelLoadError(f"{name}: {where}: {first['msg']}") from error
