"""Channel pruning: which indices can only go together, what they are worth, and the cut."""
