"""OpenAI's Responses API and prompt templates: routes, requests, items, answers and events.

The job behind a response is created by ``producer_api.submission``."""
