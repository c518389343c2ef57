"""Steps on a CPU by compiled kernels: what `kernels.c` computes, in the places of torch's operations."""
