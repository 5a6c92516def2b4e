"""Applies a tenant's policy to texts that come to a worker: those of documents, and of calls."""

from collections.abc import Sequence

from headrace.policy.budget import ScanTooLong
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_input
from headrace.policy.recognisers.recogniser import FOUND_BY_NAME
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import PinnedPolicy


def document_texts(
    policy: Policy, texts: Sequence[str], what: str, before: PlaceholderMap | None = None
) -> tuple[str, ...]:
    """Return the texts as the policy lets them be used. ``what`` names them; ``before``: placeholders that are taken.

    Raises InvalidRequest if the policy blocks one, or if it looks for names: workers have no model that finds them.
    """
    if any(FOUND_BY_NAME.intersection(rule.kinds) for rule in policy.document.rules):
        message = f"this tenant's policy looks for names, which is not done in files: take these kinds out, or {what}"
        raise InvalidRequest(message, code="policy_blocked_input")
    try:
        verdict = apply_input(policy, texts, before)
    except ScanTooLong as error:
        raise InvalidRequest(str(error), code="policy_scan_too_long") from None
    if verdict.blocked_by is not None:
        message = f"the policy's rule {verdict.blocked_by} does not let {what} in"
        raise InvalidRequest(message, code="policy_blocked_input")
    return verdict.texts


def policed_texts(
    policy: Policy, pinned: PinnedPolicy, texts: Sequence[str], what: str, *, after: int
) -> tuple[str, ...]:
    """Return texts for a job's prompt as the policy lets the model read them. Raises as ``document_texts``.

    Values that the job's input has too get their placeholders. Others that are replaced here are not restored. Their
    numbers begin behind ``after``, so that they are not those of values in the input of a later step, which are.
    """
    taken = PlaceholderMap(counts=pinned.counts) if pinned.vault is None else PlaceholderMap(**pinned.vault)
    taken.number_after(after)
    return document_texts(policy, texts, what, taken)
