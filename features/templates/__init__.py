"""Prompt templates: their routes, their language, and how requests are filled in."""
