"""Scheduling: which requests run in the next step, with how many prompt tokens; which inputs share a pass.

KV blocks are ``models.engine.block_manager``.
"""
