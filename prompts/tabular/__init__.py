"""Rows and items on the side that API and worker share: feature schemas, and the items of a recommender."""
