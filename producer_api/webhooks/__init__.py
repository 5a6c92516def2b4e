"""Webhook endpoints and deliveries: routes, and the objects that callers see.

The calls are made by ``workers.webhooks``."""
