"""Files of a tenant, and the blob storage for their contents.

Uploads are parsed in ``producer_api.files``."""
