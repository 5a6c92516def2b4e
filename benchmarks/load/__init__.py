"""NVIDIA's AIPerf, a load generator that others wrote, against the OpenAI face of a whole Headrace."""
