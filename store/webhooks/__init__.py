"""Webhooks in the database: endpoints, the outbox of deliveries, the delivery log, and redelivery.

``workers.webhooks`` makes the HTTP calls."""
