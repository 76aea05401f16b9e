"""Allocations: from every layer's errors and costs to a rank vector under a budget. Pure numpy and scipy."""
