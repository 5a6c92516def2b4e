"""Speculative decoding by prompt lookup: the draft tokens, and how many of them are worth their cost.

Verification of drafts is part of sampling.
"""
