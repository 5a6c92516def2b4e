"""The native face: submit, read, list, cancel, stream and replay jobs; queues and models beside them.

How a job is checked and stored is ``producer_api.submission``."""
