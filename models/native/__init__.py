"""The Llama family on the CPU: C++ kernels, compiled once on the machine that runs them.

The same architecture on torch is ``models.families.llama_torch``."""
