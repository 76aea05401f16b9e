"""Training: methods that change weights, each a trainable that is stepped one epoch at a time."""
