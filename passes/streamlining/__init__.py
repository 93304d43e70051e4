"""Exact rewrites of the integer stage for circuits: narrower grids, fewer tables, pads where they cost nothing."""
