"""From a checked request to a stored job: policy, prompt length, idempotency, limits of the queue, enqueueing.

What a request looks like is the business of each face."""
