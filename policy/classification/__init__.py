"""Classifiers that name the categories of a text, and their word lists.

Rules apply the scores in ``policy.outputs``."""
