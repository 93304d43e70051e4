"""Passes that rewrite a graph exactly, by rule or on request."""
