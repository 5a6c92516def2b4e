"""Two kinds of command groups: lazy ones, imported when used, and ones that list by default."""

import importlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True)
class Node:
    """A command or a group: ``module:name`` of a function or of a Typer, and its line in the parent's help.

    ``parts`` instead of ``where`` make a group of nodes. ``panel``: its heading in the help.
    """

    help: str
    where: str = ""
    parts: Mapping[str, "Node"] = field(default_factory=dict)
    panel: str | None = None

    def load(self, name: str) -> Any:
        """Import and return the command or group."""
        if self.parts:
            group = _LazyNounGroup(name=name, help=self.help)
            group.nodes = self.parts
            return group
        module, _, attribute = self.where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # so long as it was imported: see ``cli.main``
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command()(found)
            found = alone
        command: Any = typer.main.get_command(found)
        command.name = name
        return command


@dataclass(frozen=True)
class VerbsPart:
    """The ``PART`` of a feature's file ``verbs``: commands by their names."""

    nodes: Mapping[str, Node]


def noun(told: str) -> typer.Typer:
    """Return an empty group of commands. Its first command is the default, and must only list or show."""
    return typer.Typer(cls=NounGroup, help=told, add_completion=False)


class NounGroup(TyperGroup):
    """A group that runs its first command if none is named; that command only shows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the first command's name before options that are not the group's."""
        is_alone = not args or (args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx))
        # Shell completion asks for the commands.
        if is_alone and not ctx.resilient_parsing:
            args = [self.list_commands(ctx)[0], *args]
        return super().parse_args(ctx, args)


class LazyGroup(TyperGroup):
    """A group of nodes. Its help and its completion import none of them."""

    nodes: Mapping[str, Node] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order of the nodes."""
        return list(self.nodes)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a placeholder with its help, or None."""
        node = self.nodes.get(cmd_name)
        return node and TyperCommand(name=cmd_name, help=node.help, rich_help_panel=node.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command itself and the arguments left; exits with usage if there is no such command."""
        # Typer suggests those with a similar name.
        self.commands = {one: self.get_command(ctx, one) for one in self.nodes}
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and self.nodes[str(name)].load(str(name)), rest


class _LazyNounGroup(NounGroup, LazyGroup):
    pass
