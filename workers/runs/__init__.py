"""One attempt from its claim to its outcome: admission, lease, engine, stream, policy, and what is written at the end.

What is specific to a task is ``workers.tasks``."""
