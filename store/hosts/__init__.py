"""Model hosts as the core knows them: the versions that one may serve, and what a host reports of itself.

``features.hosts`` decides and runs; ``host_reports`` is what the API, the console and other hosts read.
"""
