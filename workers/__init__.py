"""Middle floor: does the work, wherever Ray puts it. Knows nothing of searches or run directories."""
