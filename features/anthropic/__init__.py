"""Anthropic's Messages API on ordinary jobs: requests, answers whole and streamed, token counts. Its batches are in
the feature ``batches``."""
