"""What brings a graph to one form: constants folded, spellings merged, exported patterns back to operators."""
