"""The Live page under the faults of the chaos tests: a browser keeps it open, and each scene asks it one question."""
