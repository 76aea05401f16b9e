"""How numbers read."""

from __future__ import annotations

import pytest

from orchestrator.report.quantities import (
    ABSENT,
    count,
    decimal,
    difference,
    duration,
    metric,
    metric_difference,
    percent,
    plural,
    saving,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.49834), "49.83%"),
        (percent(-0.5, 1), "−50.0%"),
        (count(40_551_040), "40,551,040"),
        (count(1.5), "1.50"),
        (decimal(0.25066), "0.2507"),
        (difference(200, 150), "−25.00%"),
        (metric("accuracy", 0.92578125), "92.58%"),
        (metric("accuracy", 31.4), "31.4000"),
        (metric("loss", 0.25), "0.2500"),
        (metric_difference("accuracy", 0.9258, 0.8320), "−9.38\N{NO-BREAK SPACE}points"),
        (metric_difference("loss", 0.25, 0.5), "+0.2500"),
        (duration(0.0123), "12.3 ms"),
        (duration(3.44), "3.4 s"),
        (duration(123.4), "2 min 3 s"),
        (duration(3900), "1 h 5 min"),
        (plural(1, "layer"), "1 layer"),
        (plural(2000, "layer"), "2,000 layers"),
        (saving("parameters", 0.5), "50.00% fewer parameters"),
        (saving("volume", 0.5), "50.00% less activation volume"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), "much", True])
def test_what_is_no_number_leaves_a_dash(missing: object) -> None:
    assert percent(missing) == decimal(missing) == count(missing) == duration(missing) == ABSENT
    assert metric("accuracy", missing) == difference(1, missing) == metric_difference("loss", missing, 1) == ABSENT
