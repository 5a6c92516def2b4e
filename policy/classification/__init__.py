"""Classifiers that name the categories of a text, and their word lists.

What a policy does with a category is ``policy.outputs``."""
