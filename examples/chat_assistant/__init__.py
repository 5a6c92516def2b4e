"""A chat assistant with a memory and tools."""
