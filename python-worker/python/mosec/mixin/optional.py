"""Packages that only some services need."""

import importlib


def require(module: str, user: str, install: str) -> None:
    """Says early and in plain words that a package is missing: where the class is defined, not where it is used."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{user} needs the module {module}: pip install '{install}'") from error
