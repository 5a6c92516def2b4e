"""Retention: contents are erased at the end of their time, which each tenant may shorten, or purged by the operator."""
