"""Sparsity: weights set to zero in patterns that the program's table promises and the verifier checks."""
