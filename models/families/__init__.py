"""Model architectures, one file a family, and what is read of a model folder.

How a pass is batched and cached is ``models.tensors``."""
