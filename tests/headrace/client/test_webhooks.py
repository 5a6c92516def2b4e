"""Verification of webhooks, against signatures by the library that the sender uses."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from headrace.client import InvalidSignature, verify_webhook
from headrace.store.tenants.signing_secrets import new_secret

SECRET, OTHER = new_secret(), new_secret()
BODY = '{"id":"evt_1","object":"event","type":"job.succeeded","data":{"id":"job_1","name":"Zoë"}}'


def headers(*, age_s: float = 0, secret: str = SECRET, **changes: str) -> dict[str, str]:
    """The headers of a call that was signed ``age_s`` ago."""
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    signature = Webhook(secret).sign("evt_1", at, BODY)
    signed = {"id": "evt_1", "timestamp": str(int(at.timestamp())), "signature": signature}
    return {f"Webhook-{name.title()}": value for name, value in (signed | changes).items()}


def two_signatures() -> dict[str, str]:
    """As while a secret is rotated, and with one of a version that does not exist yet."""
    mine, others = headers(), headers(secret=OTHER)["Webhook-Signature"]
    return mine | {"Webhook-Signature": f"v1a,xyz v1,? {others} {mine['Webhook-Signature']}"}


# Made when a test runs: it may be long after the collection.
@pytest.mark.parametrize("sign", [headers, lambda: headers(age_s=200), lambda: headers(age_s=-200), two_signatures])
def test_a_right_signature_gives_the_event(sign: Callable[[], dict[str, str]]) -> None:
    event = verify_webhook(BODY.encode(), sign(), SECRET)
    assert (event["type"], event["data"]["id"]) == ("job.succeeded", "job_1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"secret": OTHER}, "no signature"),
        ({"id": "evt_2"}, "no signature"),
        ({"signature": "v1,é v2,abc v1"}, "no signature"),
        ({"age_s": 320}, "s ago"),
        ({"age_s": -320}, "s ago"),
        ({"timestamp": "9" * 400}, "are needed"),
        ({"timestamp": "soon"}, "are needed"),
    ],
)
def test_a_wrong_or_old_signature_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidSignature, match=reason):
        verify_webhook(BODY.encode(), headers(**options), SECRET)
    with pytest.raises(InvalidSignature, match="are needed"):
        verify_webhook(BODY.encode(), {"webhook-id": "evt_1"}, SECRET)


def test_a_changed_body_and_a_malformed_secret_are_refused() -> None:
    with pytest.raises(InvalidSignature):
        verify_webhook(BODY.replace("job_1", "job_2").encode(), headers(), SECRET)
    with pytest.raises(ValueError, match="whsec_"):
        verify_webhook(BODY.encode(), headers(), "not a secret")
