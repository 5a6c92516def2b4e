"""``make walk``: the files that a job enters, in all processes of a running stack."""
