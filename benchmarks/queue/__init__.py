"""``make bench-queue``: submit to stored terminal state, Headrace beside what people use instead."""
