"""Audio as the input of a model: what a file holds, whether it is accepted, and its samples in chunks of a window."""
