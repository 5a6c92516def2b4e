"""A real S3 server, moto's, from an environment of its own under ``build/clients``, and s3fs from there too."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.clients.environments import python_with
from tests.processes import free_port

BUCKET = "headrace-tests"
_START_S = 60.0


@contextmanager
def running_s3() -> Iterator[str]:
    """Start an empty server, make ``s3://`` mean it in this process and yield the URL of a bucket there.

    Raises CannotInstall.
    """
    python = python_with("s3", print)
    url = f"http://127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    packages = subprocess.check_output(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    try:
        _wait_for(url, server)
        with pytest.MonkeyPatch.context() as patch:
            # Last, so that what both environments have is ours.
            patch.setattr(sys, "path", [*sys.path, packages])
            for name, value in {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                patch.setenv(name, value)
            httpx2.put(f"{url}/{BUCKET}").raise_for_status()
            yield f"s3://{BUCKET}"
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            httpx2.get(f"{url}/moto-api/").raise_for_status()
            return
        except httpx2.TransportError:
            assert server.poll() is None, "moto's server has ended"
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.05)
