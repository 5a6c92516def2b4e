"""The task ``transcribe``: an audio file to text with times, whole, streamed or in a batch, as OpenAI's is."""
