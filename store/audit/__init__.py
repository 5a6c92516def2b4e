"""The audit log: writing its rows, the hash chain over them, and reading whole chains.

Which actions are recorded is decided where the action happens, not here."""
