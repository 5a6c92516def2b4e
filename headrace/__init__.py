"""What programs of callers import: ``headrace.client``.

It needs httpx2 alone, so it imports no other package of Headrace."""
