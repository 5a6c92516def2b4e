"""The commands of schedules."""

from headrace.cli.groups import Node, VerbsPart

_SCHEDULES = Node(
    "Schedules: list, create, replace, show, pause, resume, delete.",
    "headrace.features.schedules.schedule_verbs:app",
    panel="Jobs",
)

PART = VerbsPart({"schedules": _SCHEDULES})
