"""How each task's requests become tokens: validation against the model's files, the cost in tokens, the stored payload.

One module is one task; other tasks are features (``inputs.py``). API and worker use the same code, so that they count
the same tokens. No HTTP, no weights.
"""
