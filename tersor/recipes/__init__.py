"""Ready-made recipes, as YAML."""
