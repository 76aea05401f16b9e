"""Comparisons: several searches, each under every budget of a list, on one network; one table and one page of all."""
