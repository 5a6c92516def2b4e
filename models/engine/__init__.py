"""The engine: it schedules requests, runs one step on a model, and postprocesses the result. Standard library only.

Start with ``llm_engine``: schedule, run, postprocess. ``protocol`` is what the rest of the product knows of an engine.
"""
