"""OpenAI's chat, completions, embeddings and moderations: routes, requests and answers.

Responses, batches and files have their own folders."""
