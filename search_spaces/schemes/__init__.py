"""How one layer is factorised: one file per scheme, found by name in the registry."""
