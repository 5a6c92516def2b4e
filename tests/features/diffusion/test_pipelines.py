"""Pictures by a real pipeline of diffusers with random weights: over a killed worker, and by OpenAI's client."""

import base64
import shutil
import signal
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from headrace.client import Client
from headrace.features.files.attempt_states import AttemptStates
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties, StartWorker

ORDER = {"prompt": "a mill by a river", "steps": 150, "seed": 7, "count": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    from tests.features.diffusion.tiny_pipeline import build_pipeline  # noqa: PLC0415 - see above

    return build_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def url(bench: Bench, settings: Settings, folder: Path) -> Iterator[str]:
    register(bench.db, "painter", str(folder), "auto", actor="tests")
    with serving(settings) as server:
        yield server.url


@pytest.fixture
def key(bench: Bench) -> str:
    return api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")


def png(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> bytes:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_killed_worker_s_pictures_are_those_of_an_undisturbed_run(
    bench: Bench, duties: Duties, url: str, key: str, start_worker: StartWorker, db: Database, settings: Settings
) -> None:
    with Client(url, key) as client:
        # It dies with its first state, in the middle of the steps: a step waits until a state is due.
        faults = "state.offered=sleep:2500@10,state.saved=kill"
        dying = start_worker(model="painter", environment="test", failpoints=faults, ready=False)
        job = client.submit(task="image_generate", model="painter", input=ORDER)["id"]
        assert dying.wait_exit(200) == -signal.SIGKILL, dying.log()
        bench.end_leases()
        start_worker(model="painter")
        told = [event.data["done"] for event in client.stream(job) if event.name == "job.progress"]
        ended = client.wait(job)
        again = client.wait(client.submit(task="image_generate", model="painter", input=ORDER)["id"])
        alone = client.wait(
            client.submit(task="image_generate", model="painter", input=ORDER | {"seed": 8, "count": 1})["id"]
        )
    assert (ended["status"], ended["attempt"], again["attempt"]) == ("succeeded", 2, 1)
    assert ended["output"]["seeds"] == [7, 8]
    digests = [one["sha256"] for one in ended["output"]["files"]]
    assert digests == [one["sha256"] for one in again["output"]["files"]]
    assert digests[1:] == [one["sha256"] for one in alone["output"]["files"]], "whatever else is asked for"
    assert told == sorted(told), "steps that were computed are not computed again"
    AttemptStates(settings, db.seal).remove_ended(db)
    assert not [one for one in (settings.home / "files" / "attempts").rglob("*") if one.is_file()]


def test_openai_s_client_makes_changes_and_streams_pictures(url: str, key: str, start_worker: StartWorker) -> None:
    start_worker(model="painter")
    client = OpenAI(base_url=f"{url}/v1", api_key=key)
    made = client.images.generate(
        model="painter", prompt="a mill", n=2, size="64x32", output_format="webp", extra_body={"steps": 3, "seed": 1}
    )
    assert [picture(one.b64_json).size for one in made.data or []] == [(64, 32)] * 2
    assert (made.size, made.output_format) == ("64x32", "webp")
    steps = list(
        client.images.generate(
            model="painter", prompt="a mill", stream=True, partial_images=2, extra_body={"steps": 9, "seed": 1}
        )
    )
    assert [one.type for one in steps] == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    assert [one.partial_image_index for one in steps[:2]] == [0, 1]  # type: ignore[union-attr]
    assert [picture(one.b64_json).size for one in steps] == [(64, 64)] * 3
    mill = png((64, 64))
    changed = client.images.edit(
        model="painter", image=mill, prompt="a mill in winter", extra_body={"steps": 4, "seed": 1, "strength": 0.8}
    )
    assert picture((changed.data or [])[0].b64_json).size == (64, 64)
    left = Image.open(BytesIO(mill)).convert("RGBA")
    left.putalpha(Image.fromarray(np.repeat([[255, 0]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)))
    mask = BytesIO()
    left.save(mask, "PNG")
    painted = client.images.edit(
        model="painter", image=mill, mask=mask.getvalue(), prompt="snow", extra_body={"steps": 6, "seed": 1}
    )
    assert picture((painted.data or [])[0].b64_json).size == (64, 64)


def test_a_version_with_an_adapter_makes_other_pictures_than_its_base(
    url: str, key: str, start_worker: StartWorker, db: Database, folder: Path, tmp_path: Path
) -> None:
    from tests.features.diffusion.tiny_pipeline import add_adapter  # noqa: PLC0415 - an extra, as in ``folder``

    adapted, unchanged = (shutil.copytree(folder, tmp_path / name) for name in ("adapted", "unchanged"))
    for each in (adapted, unchanged):
        add_adapter(each)
    (unchanged / "generation_defaults.json").write_text('{"lora_scale": 0}')
    order = ORDER | {"steps": 3, "count": 1}
    digests = {}
    with Client(url, key) as client:
        for name, source in (("painter", folder), ("adapted", adapted), ("unchanged", unchanged)):
            if source is not folder:
                register(db, name, str(source), "auto", actor="tests")
            start_worker(model=name)
            ended = client.wait(client.submit(task="image_generate", model=name, input=order)["id"])
            digests[name] = ended["output"]["files"][0]["sha256"]
    assert digests["adapted"] != digests["painter"]
    assert digests["unchanged"] == digests["painter"], "a scale of 0 changes no weight"


def picture(content: str | None) -> Any:
    found = Image.open(BytesIO(base64.b64decode(content or "")))
    found.load()
    return found
