"""A job's life as events for one reader, from any position.

The frames come from ``store.streams``; each face gives the events its own form."""
