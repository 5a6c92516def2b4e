"""Schedules: jobs, jobs of pipelines and batches that begin again by a line of cron. ``keeper`` makes the runs."""
