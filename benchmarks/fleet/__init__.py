"""A hundred GPUs, simulated: mock servers behind a real router, ten tenants, and processes that are killed."""
