"""The ``headrace`` command: it starts the other processes and speaks to the API as a client.

``tree`` has all commands; each is imported when it is used."""
