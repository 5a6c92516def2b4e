"""What other programs import: ``headrace.client`` for callers, ``headrace.tasks`` for tasks of your own.

The client needs httpx2 alone, the tasks nothing, so they import no other package of Headrace."""
