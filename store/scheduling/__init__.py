"""The order of jobs: queues, backlog, fair order between tenants, service rates.

Claiming a job is ``store.jobs``."""
