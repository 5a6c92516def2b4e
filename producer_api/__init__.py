"""The HTTP API: it accepts jobs, answers for them and streams them.

``runtime`` builds the parts of a process, ``app`` adds the routes; each folder is one subject with its routes."""
