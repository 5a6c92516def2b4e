"""What the project calls models: its own data."""
