"""OpenAI's chat and text completions, whole or streamed, and stored chats; token ids."""
