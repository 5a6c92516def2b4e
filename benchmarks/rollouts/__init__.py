"""Simulated rollouts: how often, and after how many jobs, the judge rolls good and bad versions back."""
