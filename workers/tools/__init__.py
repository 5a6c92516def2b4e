"""Calls of registered tools: checks of arguments, guarded and bounded calls, and results as texts for a model."""
