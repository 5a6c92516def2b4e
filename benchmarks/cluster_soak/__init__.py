"""A whole Headrace under load and kills for an hour: does anything grow?"""
