"""The fast path of the Llama family on the CPU: C++ kernels, compiled once on the machine that runs them."""
