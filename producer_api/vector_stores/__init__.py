"""OpenAI's vector stores: their routes, bodies and answers, how files are added, and how a store is searched."""
