"""What a worker does for each kind of task: generate text, embed inputs.

What all tasks share is ``workers.runs``."""
