"""Policies that choose rank vectors. fedlora finds them by entry point (group `fedlora.policies`)."""
