"""What of flows runs in workers: a step's input is filled in, its end adds steps, and others learn of both."""
