"""Limits and usage of an organization: routes and commands that show and set them. The core enforces limits."""
