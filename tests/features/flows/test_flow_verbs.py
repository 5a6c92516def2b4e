"""The commands of pipelines and tools that read or write files."""

from pathlib import Path

import pytest

from headrace.client import ResourceMissing
from headrace.features.flows.commands.pipeline_drawing import svg
from tests.cli.client.api_objects import PIPELINE, TOOL
from tests.cli.client.played import Commands, api, headrace

__all__ = ["api", "headrace"]


def test_a_pipeline_is_drawn_into_a_file(headrace: Commands, tmp_path: Path) -> None:
    headrace("pipelines show digest --svg p.svg", {"GET /v1/pipelines/digest": PIPELINE})
    assert (tmp_path / "p.svg").read_text() == svg("digest@2", PIPELINE["steps"])


def test_a_tool_is_stored_from_a_file(headrace: Commands, tmp_path: Path) -> None:
    (tmp_path / "tool.json").write_text('{"headers": {"X": "1"}, "url": "https://b.example/"}')
    made = {"GET /v1/tools": [], "POST /v1/tools": TOOL}
    for options, definition in (
        ("tool.json", {"headers": {"X": "1"}, "url": "https://b.example/"}),
        ("tool.json --mcp https://a.example/", {"headers": {"X": "1"}, "type": "mcp", "url": "https://a.example/"}),
    ):
        headrace(f"tools put other {options}", made)
        assert headrace.api.requests[1] == ("POST", "/v1/tools", {**definition, "name": "other"})


def test_a_pipeline_in_a_file_is_stored_or_made(headrace: Commands, tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("steps: [a]\n")
    missing = (404, {"error": {"message": "no pipeline", "code": "not_found", "param": "pipeline"}})
    made = {"POST /v1/pipelines/digest/versions": missing, "POST /v1/pipelines": {"version": 1}}
    assert headrace(f"pipelines add digest {file}", made) == "digest@1 is stored\n"
    assert headrace.api.requests[1] == ("POST", "/v1/pipelines", {"steps": ["a"], "name": "digest"})
    assert headrace(f"pipelines add digest {file}", {"POST /v1/pipelines/digest/versions": {"version": 2}}) == (
        "digest@2 is stored\n"
    )
    with pytest.raises(ResourceMissing):
        headrace(f"pipelines add digest {file}", {"POST /v1/pipelines": {"version": 1}})
    assert len(headrace.api.requests) == 1, "a model of a step is missing, not the pipeline"
