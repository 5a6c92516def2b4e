"""Images of jobs, read where the job runs: from the payload, from uploaded files, and from servers."""
