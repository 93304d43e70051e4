"""Ready-made recipes: lists of passes with their options, written as YAML."""
