"""Send the reviews and wait until each has an answer: ``python send.py [NUMBER] [MODEL]``."""

import os
import sys
import time
from collections.abc import Iterable

from models.review import Review
from project import app  # noqa: F401 - the app that the tasks belong to

from store import answers
from workers.tasks import judged

TEXTS = ("It broke on the first day.", "Best bread in town.", "It does what it should.", "Never again.")
AGAIN_S = float(os.environ.get("SEND_AGAIN_S", "60"))


def send(numbers: Iterable[int], model: str) -> None:
    """Send the chains of these reviews."""
    for one in numbers:
        judged(Review(one, TEXTS[one % len(TEXTS)]), model).apply_async()


def main() -> int:
    """Send, wait, and print what came.

    A review without an answer is sent again after a time without any: a worker that is killed just after it took a
    message from Redis loses it, before Celery has noted that it has it.
    """
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    model = sys.argv[2] if len(sys.argv) > 2 else "smollm2"
    send(range(number), model)
    seen, since = 0, time.monotonic()
    while len(found := answers.read()) < number:
        if len(found) > seen:
            seen, since = len(found), time.monotonic()
            sys.stdout.write(f"{seen} of {number} answered\n")
            sys.stdout.flush()
        if time.monotonic() - since > AGAIN_S:
            sys.stdout.write("again: " + ", ".join(str(one) for one in range(number) if one not in found) + "\n")
            send([one for one in range(number) if one not in found], model)
            since = time.monotonic()
        time.sleep(0.5)
    sys.stdout.write("".join(f"{one}: {found[one][0]!r}\n" for one in sorted(found)[:10]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
