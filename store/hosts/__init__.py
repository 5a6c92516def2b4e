"""Model hosts: what they know of versions and waiting work, and what they report of themselves.

``features.hosts`` decides and runs; ``host_reports`` is what the API, the console and other hosts read."""
