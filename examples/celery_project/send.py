"""Send the reviews and wait until each has an answer: ``python send.py [NUMBER] [MODEL]``."""

import sys
import time

from models.review import Review
from project import app  # noqa: F401 - the app that the tasks belong to

from store import answers
from workers.tasks import judged

TEXTS = ("It broke on the first day.", "Best bread in town.", "It does what it should.", "Never again.")


def send(number: int, model: str) -> None:
    """Send so many chains."""
    for one in range(number):
        judged(Review(one, TEXTS[one % len(TEXTS)]), model).apply_async()


def main() -> int:
    """Send, wait, and print what came."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    send(number, sys.argv[2] if len(sys.argv) > 2 else "smollm2")
    while len(found := answers.read()) < number:
        sys.stdout.write(f"\r{len(found)} of {number} answered")
        sys.stdout.flush()
        time.sleep(0.5)
    sys.stdout.write("\n" + "".join(f"{one}: {found[one][0]!r}\n" for one in sorted(found)[:10]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
