"""The runners that compute a step for the engine: torch models and encoders. Fake ones are in ``models.fakes``.

The protocol is ``models.engine.runner``."""
