"""The response cache: equal requests get the answer of one job.

lookup      which requests may get the answer of another job, and the digest by which it is found
entries     at acceptance: which new jobs compute an answer, and which get that of another
sharers     the ends of jobs that get the answer of another
"""
