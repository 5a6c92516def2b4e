"""The neural models: ``engine`` schedules, ``runners`` compute, ``loading`` reads weights.

Jobs, tenants and queues are not in this package."""
