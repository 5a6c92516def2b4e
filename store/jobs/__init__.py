"""The life of a job in Postgres: acceptance, claims, terminal states, sweeps, dead letters.

Which job is next is ``store.scheduling``; the token stream is ``store.streams``."""
