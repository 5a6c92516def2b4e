"""Recognisers of personal data and secrets: one module for each kind, and the catalogue of all.

``policy.guards`` applies the rules to their findings."""
