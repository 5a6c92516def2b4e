"""The neural models: ``engine`` decides what runs, ``runners`` compute it, ``loading`` brings weights in.

Jobs, tenants and queues are unknown here."""
