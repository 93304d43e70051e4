"""Counting the instructions of NEON kernels under emulation."""
