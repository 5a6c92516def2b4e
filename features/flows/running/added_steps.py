"""Steps that the end of a step adds to its job, for example the calls of tools that an answer asks for.

A payload says in ``then`` which kind of steps may follow, and what that kind needs to know. The kind is a function
without I/O: it gets the end of the step and returns it with the steps to add, if there are any. They are stored with
the end (``features.flows.store.growth``). The next step that may add steps has a ``then`` of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from headrace.features.flows.running.tool_steps import TOOLS, TOOLS_WITH_APPROVAL, after_answer
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.schema.job_states import JobState

AddSteps: TypeAlias = Callable[[Claim, Mapping[str, Any], Finish], Finish]
"""Returns the end of a step with what it adds; the mapping is the payload's ``then``.

It is only called for steps that succeeded. The payload of the claim is the stored one, without ``then``: references to
outputs are not filled in.
"""

KINDS: Final[Mapping[str, AddSteps]] = {TOOLS: after_answer, TOOLS_WITH_APPROVAL: after_answer}
"""The kinds of steps that may follow, by name. A new kind is one more entry."""


def with_added(
    claim: Claim, then: Mapping[str, Any], finish: Finish, kinds: Mapping[str, AddSteps], most_steps: int
) -> Finish:
    """Return the end of a step with the steps that it adds. Raises InvalidRequest for an unknown kind."""
    add_steps = kinds.get(then.get("kind", ""))
    if add_steps is None:
        raise InvalidRequest("the stored step says in `then` what this release does not know", code="invalid_payload")
    if finish.state is not JobState.SUCCEEDED:
        return finish
    ended = add_steps(claim, then, finish)
    return ended if ended.added is None else replace(ended, added=replace(ended.added, most_steps=most_steps))
