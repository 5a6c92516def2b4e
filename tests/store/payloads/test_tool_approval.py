"""Which calls of tools need an approval. No I/O."""

from typing import Any

import pytest

from headrace.features.flows.tools.tool_definition import HttpTool, McpEndpoint, McpServer, read_definition
from headrace.store.payloads.server_tools import server_of
from headrace.store.payloads.tool_approval import ApprovalByName, named_in, needs_approval
from tests.store.payloads.making import MCP, TOOL


def by_name(**lists: list[str]) -> ApprovalByName:
    return ApprovalByName.model_validate({rule: {"tool_names": names} for rule, names in lists.items()})


class TestApprovals:
    @pytest.mark.parametrize(
        ("rule", "waiting"),
        [
            ("always", ["a", "b", "c"]),
            ("never", []),
            (by_name(always=["a"]), ["a"]),
            (by_name(never=["a"]), ["b", "c"]),
            (by_name(always=["a"], never=["b"]), ["a", "c"]),
        ],
    )
    def test_a_rule_says_which_calls_wait(self, rule: Any, waiting: list[str]) -> None:
        assert [name for name in "abc" if needs_approval(rule, name)] == waiting

    def test_a_tool_may_be_named_in_several_ways(self) -> None:
        assert needs_approval(by_name(always=["short"]), "server__short", "short")
        assert not needs_approval(by_name(never=["short"]), "server__short", "short")
        assert named_in(by_name(always=["a"], never=["b"])) == {"a", "b"}
        assert named_in("always") == frozenset()

    def test_a_server_of_mcp_is_asked_by_its_own_names(self) -> None:
        told = {"a_b": {"name": "a.b", "parameters": {}}, "c": {"name": "c", "description": "d", "parameters": {}}}
        stored = MCP | {"tools": told, "require_approval": {"always": {"tool_names": ["a.b"]}}}
        server = read_definition(stored)
        assert isinstance(server, McpServer)
        assert [server.needs_approval(name) for name in ("s__a_b", "s__c", "s__unknown")] == [True, False, False]
        assert server.functions("s") == {
            "s__a_b": {"description": "", "parameters": {}},
            "s__c": {"description": "d", "parameters": {}},
        }
        others = server.model_copy(update={"require_approval": by_name(never=["c"])})
        assert [others.needs_approval(name) for name in ("s__a_b", "s__c", "s__unknown")] == [True, False, True]
        # An older release reads a definition without the fields that it does not know.
        assert McpEndpoint.model_validate(MCP).model_dump().keys().isdisjoint({"require_approval", "command"})

    def test_a_tool_of_its_own_is_told_by_its_name(self) -> None:
        tool = read_definition(TOOL | {"description": "d", "require_approval": "always"})
        assert isinstance(tool, HttpTool)
        assert tool.functions("t") == {"t": {"description": "d", "parameters": {"type": "object", "properties": {}}}}
        assert tool.needs_approval("t")
        assert not HttpTool.model_validate(TOOL).needs_approval("t")
        assert "require_approval" not in HttpTool.model_validate(TOOL).model_dump()

    @pytest.mark.parametrize(
        ("name", "server"), [("s__t", "s"), ("s__t__u", "s"), ("t", None), ("__t", None), ("s__", None)]
    )
    def test_the_server_is_the_first_part_of_a_name(self, name: str, server: str | None) -> None:
        assert server_of(name) == server
