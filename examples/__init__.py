"""Examples: scripts that run, and that the tests run."""
