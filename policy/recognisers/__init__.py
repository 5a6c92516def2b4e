"""What finds personal data and secrets: one module for each kind, and the catalogue of all.

What is done with a finding is ``policy.guards``."""
