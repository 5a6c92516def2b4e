"""The tables as SQLAlchemy metadata, and the states and event names that their columns hold.

Nothing in here reads or writes; changes of the schema are ``migrations``."""
