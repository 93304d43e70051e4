"""The one optimizer loop, and the passes that learn with it."""
