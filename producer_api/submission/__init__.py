"""From a checked request to a stored job: prompt length, idempotency, limits of the queue, enqueueing.

The shape of a request belongs to the folder of its routes."""
