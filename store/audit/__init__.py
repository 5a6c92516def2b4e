"""The audit log: writing entries, the hash chain over them, and reading whole chains.

The code that makes a change decides whether it is recorded."""
