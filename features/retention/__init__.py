"""Retention: the dispatcher erases contents at the end of their time, which each tenant may shorten."""
