"""A tenant, and jobs of it."""

from tests.store.conftest import make_job, tenant

__all__ = ["make_job", "tenant"]
