"""Examples that train a small model, serve it and ask it. Each folder has a README."""
