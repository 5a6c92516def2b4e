"""What a process reads once for many callers, or keeps for a moment: models, limits, live processes.

Nothing in here is the truth; Postgres is."""
