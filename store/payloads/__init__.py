"""What a job carries and what it answers, as typed data: the stored and the submitted form are the same.

No database is used in here."""
