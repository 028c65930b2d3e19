"""Values with their units, as Grafana writes them."""


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit, as short as Grafana shows it."""
    if unit == "percentunit":
        return _rounded(value * 100, decimals) + "%"
    if unit == "s":
        return _time(value)
    if unit in ("bytes", "Bps"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB")) + ("/s" if unit == "Bps" else "")
    if unit in ("reqps", "ops"):
        return _scaled(value, 1000, ("", "K", "M"), decimals) + (" req/s" if unit == "reqps" else "/s")
    return _scaled(value, 1000, ("", "K", "M"), decimals) + {"celsius": " °C", "watt": " W"}.get(unit, "")


def _time(value: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= size:
            return f"{_rounded(value / size)} {name}"
    return f"{_rounded(value)} s" if value else "0 s"


def _scaled(value: float, base: int, names: tuple[str, ...], decimals: int | None = None) -> str:
    at = 0
    while abs(value) >= base and at + 1 < len(names):
        value, at = value / base, at + 1
    return f"{_rounded(value, decimals)} {names[at]}".strip()


def _rounded(value: float, decimals: int | None = None) -> str:
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
