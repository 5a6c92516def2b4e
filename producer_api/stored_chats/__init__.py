"""OpenAI's stored chat completions: read, listed, changed and deleted.

``producer_api.openai`` makes them, and ``store.jobs.stored_chats`` reads their jobs."""
