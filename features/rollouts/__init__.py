"""Rollouts: an alias goes from its stable version to a candidate in steps, and back if the candidate is worse.

``changes`` writes the rows, ``transitions`` decides what is next, ``judge`` compares the two versions.
"""
