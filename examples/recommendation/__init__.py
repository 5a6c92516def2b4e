"""Recommendations for a shop: a generator of clicks, the training of two towers, and items through the API."""
