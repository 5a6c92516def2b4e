"""Files of OpenAI's shape: routes, uploads, and the objects that callers see.

Contents and rows are ``store.files``."""
