"""The commands of prompt templates that read files."""

from pathlib import Path

import pytest

from headrace.store.errors import InvalidRequest
from tests.cli.client.played import Commands, api, headrace

__all__ = ["api", "headrace"]


def test_a_template_in_a_file_is_stored_or_made(headrace: Commands, tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("text: Say {{ x }}\nvariables: [x]\n")
    template = {"text": "Say {{ x }}", "variables": ["x"]}
    added = {"POST /v1/prompts/guide/versions": {"version": 3}}
    assert headrace(f"prompts put guide {file}", added) == "guide@3 is stored\n"
    assert headrace.api.requests == [("POST", "/v1/prompts/guide/versions", template)]
    assert headrace(f"prompts put guide {file}", {"POST /v1/prompts": {"version": 1}}) == "guide@1 is stored\n"
    assert headrace.api.requests[1] == ("POST", "/v1/prompts", template | {"name": "guide"})
    for bad, said in (("[1]", "nor a mapping"), ("{", "Expecting")):
        file.write_text(bad)
        with pytest.raises(InvalidRequest, match=said):
            headrace(f"prompts put guide {file}", added)
