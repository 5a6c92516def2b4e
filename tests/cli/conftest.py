"""A tenant, jobs of it, and the demo model's folder."""

from tests.prompts.conftest import smollm2
from tests.store.conftest import make_job, tenant

__all__ = ["make_job", "smollm2", "tenant"]
