"""Whose request starts a batch at once: a tenant's first one to a model for a moment."""

from headrace.producer_api.submission.recent_tenants import IDLE_S, RecentTenants


def test_requests_to_another_model_or_of_another_tenant_make_none_wait() -> None:
    now = 0.0
    recent = RecentTenants(lambda: now)
    flood = [recent.was_idle("acme", "fraud") for _ in range(3)]
    assert flood == [True, False, False]
    assert recent.was_idle("acme", "smollm2")
    assert recent.was_idle("globex", "fraud")
    now += IDLE_S / 2
    assert not recent.was_idle("acme", "fraud")
    now += IDLE_S / 2
    assert recent.was_idle("acme", "smollm2")
    assert not recent.was_idle("acme", "fraud"), "its last request was half of that time ago"
