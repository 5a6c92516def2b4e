"""The commands of retention."""

from headrace.cli.groups import Node, VerbsPart

_APP = "headrace.features.retention.retention_verbs:app"

PART = VerbsPart({"retention": Node("Retention of contents: show, set, purge.", _APP, panel="Tenants")})
