"""A request inside the engine: its tokens, cached prefix, stop strings, and when its new text is shown.

When it runs is ``models.engine.scheduling``."""
