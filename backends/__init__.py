"""What lowers a Program to a target: one folder a target, what several share beside them."""
