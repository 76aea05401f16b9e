"""Ground floor: what may be chosen and what it costs. No Ray, no files, no data."""
