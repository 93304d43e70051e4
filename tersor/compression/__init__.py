"""From a budget to a compressed, lowered, measured artifact."""
