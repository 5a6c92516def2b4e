"""The runners that compute a step for the engine: torch models, encoders, fake models for tests, injected faults.

The protocol is ``models.engine.runner``."""
