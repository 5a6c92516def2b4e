"""What of flows is in Postgres: what follows when a step begins or ends, steps that are added, approvals."""
