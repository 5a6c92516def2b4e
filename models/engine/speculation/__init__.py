"""Speculative decoding by prompt lookup: the guesses, and how many are worth their cost.

Verifying them is part of sampling."""
