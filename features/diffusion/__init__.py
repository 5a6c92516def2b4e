"""Tasks of diffusion models: what their pipelines share, for pictures and for video. Each task is a folder here."""
