"""Policies of tenants: rules that replace or refuse texts before the model, and block or replace them after it.

What the rules find is ``headrace.policy``."""
