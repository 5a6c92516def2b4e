"""Mutation tests: careless changes are made in the product's code, one at a time, and the tests have to notice them."""
