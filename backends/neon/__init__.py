"""Integer programs as a self-contained C library for ARM."""
