"""OpenAI's Responses API and prompt templates: routes, requests, items, answers and events.

The job under a response is made in ``producer_api.submission``."""
