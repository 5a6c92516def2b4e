"""The task ``recommend``: the items that fit a user's features best. It reads features as the task ``predict`` does."""
