"""The task ``video_generate``: a prompt in, a video out."""
