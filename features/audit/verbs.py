"""The commands of the audit log."""

from headrace.cli.groups import Node, VerbsPart

_AUDIT = Node("The audit log: export, verify, head.", "headrace.features.audit.audit_verbs:app", panel="Operating")

PART = VerbsPart({"audit": _AUDIT})
