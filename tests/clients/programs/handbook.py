"""A vector store with two files, for programs whose clients search in files; made with the official client."""

import time

from openai import OpenAI
from reporting import ENCODER

WARRANTY = "The warranty of the water wheel lasts seven years. It begins on the day of delivery."
OPENING = "The mill is open from Tuesday to Saturday. Visitors meet the miller at the gate."
QUESTION = "How long does the warranty of the water wheel last?"
FILE = "warranty.txt"
"""Name of the file that answers ``QUESTION``."""


def new_handbook() -> str:
    """Return the id of a new store that has both files."""
    client = OpenAI()
    files = [(FILE, WARRANTY), ("opening.txt", OPENING)]
    ids = [client.files.create(file=(name, text.encode()), purpose="assistants").id for name, text in files]
    store = client.vector_stores.create(name="Handbook", file_ids=ids, extra_body={"model": ENCODER})
    deadline = time.monotonic() + 60
    while (counts := client.vector_stores.retrieve(store.id).file_counts).completed < len(ids):
        assert time.monotonic() < deadline and not counts.failed, counts
        time.sleep(0.1)
    return store.id
