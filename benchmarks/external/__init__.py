"""The path beside and in front of a vLLM: streamed tokens with an engine that costs nothing, and with a real one."""
