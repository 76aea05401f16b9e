"""The ways to run a program on a device, by name."""

from workers.timing.backends.registry import backends

__all__ = ["backends"]
