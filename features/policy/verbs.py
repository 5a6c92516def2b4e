"""The commands of policies."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart({"policy": Node("Try policies out.", "headrace.features.policy.policy_verbs:app", panel="Tenants")})
