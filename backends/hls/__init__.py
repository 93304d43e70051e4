"""The hls target: a dataflow of integer streams in C++ for high-level synthesis, simulated with g++."""
