"""Five models and four adapters in memory for two of them, beside five workers that are always loaded."""
