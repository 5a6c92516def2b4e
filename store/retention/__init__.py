"""Retention of contents, erasure of a job's contents, and purges of a tenant's or a user's data.

The dispatcher runs the erasure of expired contents."""
