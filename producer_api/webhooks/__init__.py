"""Routes and models of webhook endpoints and deliveries.

``workers.webhooks`` sends the deliveries."""
