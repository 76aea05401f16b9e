"""Hardware in the loop: which devices there are, what they were measured to take, and how they are measured."""
