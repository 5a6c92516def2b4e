"""Makes thumbnails of a picture by a job: ``python -m examples.thumbnails.make mill.png``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2

from headrace.client import Client


def make(url: str, key: str, picture: bytes, widths: Sequence[int], say: Callable[[str], object]) -> dict[str, bytes]:
    """Return the thumbnails of a picture by name. ``say`` hears how far the job is. Raises RuntimeError if it fails."""
    with (
        httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http,
        Client(url, key) as client,
    ):
        sent = http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("picture", picture)})
        order = {"file_id": sent.raise_for_status().json()["id"], "widths": [*widths]}
        job = client.submit(task="thumbnails", model="thumbnails", input=order)
        for event in client.stream(job["id"]):
            if event.name == "job.progress":
                say(f"{event.data['done']:g} of {event.data['total']:g} {event.data['message']}")
        ended = client.wait(job["id"])
        if ended["output"] is None:
            raise RuntimeError(f"{job['id']} {ended['status']}: {ended['error']}")
        return {file["name"]: http.get(file["url"]).raise_for_status().content for file in ended["output"]["files"]}


def main() -> None:
    """Make the thumbnails of a picture in the working folder."""
    parser = argparse.ArgumentParser(prog="python -m examples.thumbnails.make", description=__doc__)
    parser.add_argument("picture", type=Path, help="a PNG, JPEG or WebP file")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    options = parser.parse_args()
    url, key = os.environ.get("HEADRACE_API_URL", "http://127.0.0.1:8000"), os.environ["HEADRACE_API_KEY"]
    made = make(url, key, options.picture.read_bytes(), options.widths, lambda line: sys.stdout.write(line + "\n"))
    for name, content in made.items():
        Path(f"{options.picture.stem}-{name}").write_bytes(content)
        sys.stdout.write(f"{options.picture.stem}-{name}: {len(content)} bytes\n")


if __name__ == "__main__":
    main()
