"""Compares what an inference server says of itself with what a version was registered with.

What the server does not say cannot be compared: it is named in the server's description, which each attempt records.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from headrace.models.external.upstream import ServerInfo
from headrace.store.registry.engine_spec import EngineKind, EngineSpec


def why_refused(spec: EngineSpec, info: ServerInfo) -> str | None:
    """Return why the version must not run on this server, with all differences; None if nothing differs."""
    found = [*_of_names(spec, info), *_of_values(spec, info)]
    return f"the inference server runs something else than was registered: {'; '.join(found)}" if found else None


def unsaid(spec: EngineSpec, info: ServerInfo) -> list[str]:
    """Return what the version was registered with, and the server does not say."""
    return [name for name, wanted, said in _pairs(spec, info) if wanted and said is None]


class ServerCheck:
    """Checks each server that answers, and remembers the description of the last one that was accepted.

    ``is_own``: the worker starts the server, so values that it does not say are those that it was started with.
    ``note`` is called with each new description.
    """

    def __init__(self, spec: EngineSpec, *, is_own: bool, note: Callable[[str], None] = lambda text: None) -> None:
        self._spec = spec
        self._is_own = is_own
        self._note = note
        self.description: str | None = None

    def refuse(self, info: ServerInfo) -> str | None:
        """Return why the version must not run on this server, or None. As ``ExternalEngine`` asks it."""
        reason = why_refused(self._spec, info)
        if reason is None and (found := self._describe(info)) != self.description:
            self.description = found
            self._note(found)
        return reason

    def _describe(self, info: ServerInfo) -> str:
        """Return the server in one line: its version, what it runs, and what of the registration it does not say."""
        spec, missing = self._spec, unsaid(self._spec, info)
        if self._is_own:
            info = replace(info, quantization=info.quantization or spec.quantization)
            missing = []
        parts = [
            f"{spec.kind.value} {info.engine_version or '(version not said)'}",
            spec.request_model,
            *_given("revision", info.revision),
            *_given("quantization", info.quantization),
            *_given("dtype", info.dtype),
            *_given("context window", info.context_window),
            *(["batch invariant"] if info.batch_invariant or (self._is_own and spec.batch_invariant) else []),
            *_given("not said:", ", ".join(missing)),
        ]
        return "; ".join(parts)


def _of_names(spec: EngineSpec, info: ServerInfo) -> Sequence[str]:
    missing = [name for name in (spec.served_model, spec.adapter) if name and name not in info.models]
    served = ", ".join(info.models) or "no model"
    found = [f"it serves {served}, and not {name}" for name in missing]
    # A second name of the base would answer without the adapter. Chat servers do not say what is an adapter.
    if spec.kind is not EngineKind.OPENAI and spec.adapter in info.models and spec.adapter not in info.adapters:
        found.append(f"its {spec.adapter} is not an adapter")
    return found


def _of_values(spec: EngineSpec, info: ServerInfo) -> Sequence[str]:
    found = []
    for name, wanted, said in _pairs(spec, info):
        is_less = isinstance(wanted, int) and isinstance(said, int) and said < wanted
        is_other = isinstance(wanted, str) and said != wanted
        if wanted and said is not None and (is_less or is_other):
            found.append(f"its {name} is {'empty' if said == '' else said}, and not {wanted}")
    return found


def _pairs(spec: EngineSpec, info: ServerInfo) -> list[tuple[str, str | int | None, str | int | None]]:
    """Return the names of all values, with what was registered and what the server says."""
    return [
        ("revision", spec.revision, info.revision),
        ("quantization", spec.quantization, info.quantization),
        ("context window", spec.context_window, info.context_window),
        ("batch invariance", spec.batch_invariant, info.batch_invariant),
    ]


def _given(name: str, value: object) -> list[str]:
    return [f"{name} {value}"] if value else []
