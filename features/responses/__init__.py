"""OpenAI's Responses API: responses with their events, and conversations."""
