"""``headrace demo``: one burst of jobs on real processes, drawn as charts.

Starting the processes is ``cli.local``."""
