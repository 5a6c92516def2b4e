"""HTTP in, HTTP out: accepts jobs, answers for them, streams them."""
