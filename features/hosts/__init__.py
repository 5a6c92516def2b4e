"""The model host: starts, drains and stops ordinary workers by what waits.

Within a memory budget ``placement`` decides and ``model_host`` runs and records. ``scaled_host`` has as many workers as
the leading dispatcher decides. Both are a ``host_loop``; ``resident_workers`` has the processes, ``kept_servers`` the
inference servers that sleep."""
