"""The engine beside what the machine can do at best."""
