"""Finds a body, a head or a dataset by its name: the name is that of a module in its package."""

import importlib
import pkgutil


def names(package: str) -> list[str]:
    """The modules of a package, by name; packages in it are none."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if not m.ispkg)


def module(package: str, name: str, *, needs: str):
    """Imports `package.name`, which must define `needs`; an unknown name lists those that exist."""
    known = names(package)
    found = importlib.import_module(f"{package}.{name}") if name in known else None
    if found is None or not hasattr(found, needs):
        usable = [n for n in known if hasattr(importlib.import_module(f"{package}.{n}"), needs)]
        raise ValueError(f"no {package}.{name}; there are: {', '.join(usable)}")
    return found
