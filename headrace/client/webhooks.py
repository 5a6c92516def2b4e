"""Verification of webhooks (Standard Webhooks 1.0.0): signature and age."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import cast

from headrace.client.errors import InvalidSignature
from headrace.client.job_data import WebhookEvent

TOLERANCE_S = 300.0


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secret: str, *, tolerance_s: float = TOLERANCE_S
) -> WebhookEvent:
    """Return the event of a webhook.

    ``body``: the bytes as they were received. ``headers``: in any case. ``secret``: of the endpoint, ``whsec_…``.
    Raises InvalidSignature if no signature is of this secret, or the time of the attempt is more than
    ``tolerance_s`` away from this machine's clock; ValueError if ``secret`` is not a secret.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        signatures = lower["webhook-signature"]
        sent_at = lower["webhook-timestamp"]
        age_s = datetime.now(UTC).timestamp() - int(sent_at)
        signed = b"%b.%b.%b" % (lower["webhook-id"].encode(), sent_at.encode(), body)
    except (KeyError, ValueError, OverflowError):
        raise InvalidSignature("webhook-id, webhook-timestamp and webhook-signature are needed") from None
    expected = hmac.digest(_key(secret), signed, hashlib.sha256)
    if not any(hmac.compare_digest(expected, given) for given in _given(signatures.split())):
        raise InvalidSignature("no signature is of this secret")
    if abs(age_s) > tolerance_s:
        raise InvalidSignature(f"the webhook was sent {age_s:.0f} s ago by this clock; {tolerance_s:.0f} s are allowed")
    return cast(WebhookEvent, json.loads(body))


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("the secret is not of the form whsec_… that the API shows") from None


def _given(signatures: Iterable[str]) -> Iterable[bytes]:
    """Yield the signatures of version 1; other versions are for newer receivers."""
    for signature in signatures:
        version, _, value = signature.partition(",")
        if version == "v1":
            try:
                yield base64.b64decode(value)
            except ValueError:
                continue
