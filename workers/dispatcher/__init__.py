"""The dispatcher: the one process that does what must happen although no caller asks for it.

Sending webhooks is ``workers.webhooks``."""
