"""What the top floor's tests share."""

from __future__ import annotations

from hypothesis import settings

# The first call of an operator loads libraries: a deadline per example would only measure that.
settings.register_profile("rankray", deadline=None, max_examples=60)
settings.load_profile("rankray")
