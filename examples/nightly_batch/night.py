"""Classifies a file of messages over night: ``python -m examples.nightly_batch.night MESSAGES.csv RESULT.csv``.

The lines wait until nothing better is to do. The end comes as a signed webhook, so that nobody has to ask.
"""

import argparse
import csv
import json
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from openai import OpenAI

from examples.stack import headrace
from headrace.client import Client, InvalidSignature, verify_webhook

KINDS = ("complaint", "question", "praise")
MESSAGES = ("My bread was stale.", "When do you open?", "The best cake of my life!", "Do you bake without nuts?")
# The receiver is on this machine, which a Headrace in operation refuses to call.
LOCAL_WEBHOOKS = {"HEADRACE_WEBHOOK_ALLOW_HTTP": "true", "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8"}


def lines(messages: Sequence[str], model: str) -> str:
    """Return the input file of the batch: a request for each message, whose answer can only be one of KINDS."""
    form = {"type": "json_schema", "json_schema": {"name": "kind", "schema": {
        "type": "object", "properties": {"kind": {"enum": list(KINDS)}}, "required": ["kind"],
        "additionalProperties": False,
    }}}  # fmt: skip
    ask = "Is the message of a customer a complaint, a question or praise? Answer in JSON."
    return "".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": model,
                    "messages": [{"role": "system", "content": ask}, {"role": "user", "content": message}],
                    "response_format": form,
                    "max_tokens": 24,
                    "temperature": 0,
                },
            }
        )
        + "\n"
        for number, message in enumerate(messages)
    )


def kinds(output: str) -> Mapping[int, str]:
    """Return the kind of each message by its number, from the batch's output file."""
    found = {}
    for line in map(json.loads, output.splitlines()):
        text = line["response"]["body"]["choices"][0]["message"]["content"]
        found[int(line["custom_id"])] = json.loads(text)["kind"]
    return found


@contextmanager
def receiver() -> Iterator[tuple[str, "queue.Queue[str]", list[str]]]:
    """Yield the address of a receiver, the batches whose end it was told, and a list for the secret."""
    ended: queue.Queue[str] = queue.Queue()
    secrets: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            try:
                event = verify_webhook(body, {name.lower(): value for name, value in self.headers.items()}, secrets[0])
            except (InvalidSignature, IndexError):
                self.send_error(401)
                return
            self.send_response(204)
            self.end_headers()
            ended.put(event["data"]["id"])

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/ended", ended, secrets
    finally:
        server.shutdown()
        server.server_close()


def night(client: OpenAI, admin: Client, messages: Sequence[str], model: str, *, wait_s: float = 600) -> list[str]:
    """Return the kind of each message, ``-`` where the batch has none. Raises queue.Empty if no event comes in time."""
    with receiver() as (url, ended, secrets):
        wanted = {"url": url, "events": ["batch.completed", "batch.failed", "batch.expired"]}
        endpoint = admin.request("POST", "/v1/webhook_endpoints", json=wanted)
        secrets.append(endpoint["secret"])
        try:
            file = client.files.create(file=("night.jsonl", lines(messages, model).encode()), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while ended.get(timeout=wait_s) != batch.id:
                pass
        finally:
            admin.request("DELETE", f"/v1/webhook_endpoints/{endpoint['id']}")
    done = client.batches.retrieve(batch.id)
    found = kinds(client.files.content(done.output_file_id).text) if done.output_file_id else {}
    return [found.get(number, "-") for number in range(len(messages))]


def main() -> None:
    """Read the messages, wait for the batch, write the result."""
    parser = argparse.ArgumentParser(prog="python -m examples.nightly_batch.night", description=__doc__)
    parser.add_argument("messages", nargs="?", type=Path, help="a CSV whose first column is the message")
    parser.add_argument("result", nargs="?", type=Path, help="where the CSV with the kinds goes; else it is printed")
    parser.add_argument("--model", default="smollm2")
    options = parser.parse_args()
    messages = MESSAGES if options.messages is None else _column(options.messages)
    with (
        headrace(options.model, **LOCAL_WEBHOOKS) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client,
        Client(server.url, server.key) as admin,
    ):
        rows = list(zip(messages, night(client, admin, messages, options.model), strict=True))
    if options.result is None:
        csv.writer(sys.stdout).writerows(rows)
    else:
        with options.result.open("w", newline="") as out:
            csv.writer(out).writerows(rows)


def _column(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row[0] for row in csv.reader(file) if row]


if __name__ == "__main__":
    main()
