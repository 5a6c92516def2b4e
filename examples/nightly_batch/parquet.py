"""Copy the results of a batch to a Parquet file, also while it runs and to S3: needs pyarrow, and s3fs for S3.

``python -m examples.nightly_batch.parquet BATCH s3://bucket/results.parquet``, with HEADRACE_API_URL and
HEADRACE_API_KEY. A thousand results are in memory at a time.
"""

import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import fsspec
import httpx2
import orjson

WAIT_S = 5.0
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


def pages(client: httpx2.Client, batch_id: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the results in the order of the input, as they come, until the batch has ended."""
    after = "1.0"
    while True:
        has_ended = client.get(f"/v1/batches/{batch_id}").raise_for_status().json()["status"] in ENDED
        found = client.get(f"/v1/batches/{batch_id}/results", params={"after": after}).raise_for_status()
        after = found.headers["Headrace-Next"]
        if found.content:
            yield [orjson.loads(line) for line in found.content.splitlines()]
        elif has_ended:
            return
        else:
            time.sleep(WAIT_S)


def copy(client: httpx2.Client, batch_id: str, url: str) -> int:
    """Write a row for each line: its id, status, answer or error as JSON. Returns the number of rows."""
    pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    schema = pa.schema({"custom_id": pa.string(), "status_code": pa.int16(), "body": pa.string(), "error": pa.string()})
    num_rows = 0
    with fsspec.open(url, "wb") as out, pq.ParquetWriter(out, schema) as writer:
        for page in pages(client, batch_id):
            rows = [_row(result) for result in page]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            num_rows += len(rows)
    return num_rows


def _row(result: dict[str, Any]) -> dict[str, Any]:
    response, error = result["response"] or {}, result["error"]
    return {
        "custom_id": result["custom_id"],
        "status_code": response.get("status_code"),
        "body": orjson.dumps(response["body"]).decode() if response else None,
        "error": None if error is None else error["code"],
    }


if __name__ == "__main__":
    key = {"Authorization": f"Bearer {os.environ['HEADRACE_API_KEY']}"}
    with httpx2.Client(base_url=os.environ["HEADRACE_API_URL"], headers=key, timeout=60) as http:
        sys.stdout.write(f"{copy(http, sys.argv[1], sys.argv[2])} rows\n")
