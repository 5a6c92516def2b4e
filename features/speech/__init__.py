"""The task ``speech``: text to sound, sentence by sentence, whole or streamed, as OpenAI's is."""
