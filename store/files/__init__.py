"""Files: a tenant's names for contents, and the storage that holds the contents.

Parsing of uploads is ``producer_api.files``."""
