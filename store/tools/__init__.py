"""Tools that the server calls for the models of a tenant: what they are, and their rows."""
