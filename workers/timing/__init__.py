"""Timing on real devices: what is timed, the protocol, the backends, the actor that leases a device."""
