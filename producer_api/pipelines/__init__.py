"""The routes of pipelines: stored lists of steps, in versions with aliases."""
