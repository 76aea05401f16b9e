"""The searches: pure Python, no Ray and no torch. One file each, found by name in the registry."""
