"""The dispatcher: one process with the periodic duties that no request triggers.

Webhooks are ``workers.webhooks``.
"""
