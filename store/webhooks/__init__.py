"""Webhooks as rows: endpoints, the outbox of deliveries, their log, and sending again.

The HTTP calls are made by ``workers.webhooks``."""
