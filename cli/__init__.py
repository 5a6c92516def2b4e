"""The `headrace` command: starts the other parts as processes and speaks to the API as a client."""
