"""``make scoreboard``: the same jobs and the same faults against Headrace and what people use for the same job."""
