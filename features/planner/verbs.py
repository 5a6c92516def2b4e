"""The command of the planner."""

from headrace.cli.groups import Node, VerbsPart

_WHERE = "headrace.features.planner.plan_verb:plan"
_PLAN = Node("Forecast waits and cost of fixed and scaled workers.", _WHERE, panel="Models, queues, webhooks")

PART = VerbsPart({"plan": _PLAN})
