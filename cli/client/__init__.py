"""Commands that speak to a running Headrace over HTTP.

Commands that need the database are ``cli.operator``."""
