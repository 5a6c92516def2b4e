"""The command of model hosts."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart({"host": Node("Run a model host.", "headrace.features.hosts.host_verb:host", panel="Processes")})
