"""The commands of encryption."""

from headrace.cli.groups import Node, VerbsPart

_ENCRYPTION = Node(
    "Master keys: status, new-key, rotate, forget.",
    "headrace.features.encryption.encryption_verbs:app",
    panel="Operating",
)

PART = VerbsPart({"encryption": _ENCRYPTION})
