"""What turns a model from elsewhere into a Program."""
