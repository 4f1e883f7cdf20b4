"""Local training and evaluation with a client axis."""
