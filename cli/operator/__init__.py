"""Commands of the operator, which use the database: tenants, keys, limits, audit, encryption, processes.

Commands of a caller are ``cli.client``."""
