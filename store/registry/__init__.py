"""What is registered by name and version: models with their aliases, policies, and prompt templates.

What a policy or a template contains is not interpreted here."""
