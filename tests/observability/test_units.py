"""Values as they are written in pictures."""

import pytest
from units import shown


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.123, "percentunit", "12.3%"),
        (0.00042, "s", "420 µs"),
        (0.25, "s", "250 ms"),
        (90.0, "s", "1.5 min"),
        (90 * 86400.0, "s", "90 days"),
        (0.0, "s", "0 s"),
        (1536.0, "bytes", "1.5 KiB"),
        (3 * 1024.0**3, "Bps", "3 GiB/s"),
        (1234.0, "reqps", "1.23 K req/s"),
        (7.0, "none", "7"),
        (65.0, "celsius", "65 °C"),
    ],
)
def test_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_decimals_are_kept() -> None:
    assert shown(0.0005, "percentunit", 2) == "0.05%"
