"""How long contents are kept, erasing a job's contents, and purging all data of a tenant or a user.

When it happens is decided by the dispatcher."""
