"""The commands of limits."""

from headrace.cli.groups import Node, VerbsPart

_LIMITS = Node("Limits of tenants and keys: show, set.", "headrace.features.limits.limits_verb:limits", panel="Tenants")

PART = VerbsPart({"limits": _LIMITS})
