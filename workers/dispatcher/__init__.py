"""The dispatcher: one process with the periodic duties that no request triggers, and those of features."""
