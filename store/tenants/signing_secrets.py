"""Secrets that sign what is sent to a tenant: each tenant gets one when it is created."""

import base64
import secrets

from headrace.store.seal import SealContext


def new_secret() -> str:
    """Return a new signing secret in the form of Standard Webhooks 1.0.0. 48 bytes need no padding in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(48)).decode()


def secret_context(tenant_id: str, endpoint_id: str | None = None) -> SealContext:
    """Return the context of the secrets of an endpoint, or of the tenant."""
    if endpoint_id is None:
        return SealContext(tenant_id, "webhook_secrets", "secret", tenant_id)
    return SealContext(tenant_id, "webhook_endpoints", "secret", endpoint_id)
