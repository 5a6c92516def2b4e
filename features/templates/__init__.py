"""The routes of prompt templates."""
