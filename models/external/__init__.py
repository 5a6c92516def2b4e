"""Inference servers of other projects as engines: vLLM, SGLang, and servers that speak OpenAI's chat completions.

One adapter a server (``upstream.Upstream``) translates its HTTP API; ``external_engine`` makes an engine of it.
Scheduling and KV caches are the server's; promises about jobs are the workers'.
"""
