"""Jobs, jobs of steps and batches that start in the operator's cheap hours, unless their deadline comes before."""
