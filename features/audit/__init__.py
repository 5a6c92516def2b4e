"""The audit log's other side: the hash chain over the entries, exports, heads outside of the database, routes, verbs.

The core writes and lists the entries (``store.audit_log``): the code that makes a change decides whether it is noted.
"""
