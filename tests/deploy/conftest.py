"""What the tests of deployments share."""

from tiny_run import ground

__all__ = ["ground"]
