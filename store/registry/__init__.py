"""Registries of named versions: models with their aliases, policies, and prompt templates.

The contents of policies and templates are not interpreted here."""
