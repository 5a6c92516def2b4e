"""The model host: starts, drains and stops ordinary workers by what waits, within a memory budget.

``placement`` decides, ``model_host`` runs and records, ``resident_workers`` has the processes."""
