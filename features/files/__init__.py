"""Files of a tenant, uploads in parts, and the blob storage for their contents."""
