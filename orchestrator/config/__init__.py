"""The config: YAML checked before anything starts, every mistake one line."""
