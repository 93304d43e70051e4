"""Where grids go, how they are found, and what corrects their error."""
