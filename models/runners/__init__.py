"""What the engine runs a step with: torch models, encoders, the fake models of the tests, and injected faults.

The protocol is ``models.engine.runner``."""
