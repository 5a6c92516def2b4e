"""Registries of named versions: models with their aliases, and prompt templates.

The contents of templates are not interpreted here."""
