"""The commands of jobs with several steps."""

from headrace.cli.groups import Node, VerbsPart

_COMMANDS = "headrace.features.flows.commands"
_SERVING = "Models, queues, webhooks"

PART = VerbsPart(
    {
        "tools": Node("Tools that the server calls: list, put, delete.", f"{_COMMANDS}.tools:app", panel=_SERVING),
        "approvals": Node(
            "Calls of tools that wait: list, approve, refuse.", f"{_COMMANDS}.approvals:app", panel="Jobs"
        ),
        "pipelines": Node("Pipelines: list, show, add, alias, remove.", f"{_COMMANDS}.pipelines:app", panel=_SERVING),
    }
)
