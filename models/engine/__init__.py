"""The engine: it schedules requests, runs one step on a model, and postprocesses the result. Standard library only.

Start with ``llm_engine``: schedule, run, postprocess. Then ``scheduling``, ``sequence`` and ``block_manager``. The rest
of the product knows the ``protocol`` of an engine. Tensors are the runner's.
"""
