"""Encoders on the side that API and worker share: their folders, their inputs, and entities in a text."""
