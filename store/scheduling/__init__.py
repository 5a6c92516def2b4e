"""Which job is next: queues, backlog, fair order between tenants, and how fast queues are served.

Claiming a job is ``store.jobs``."""
