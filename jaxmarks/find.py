"""Finds a body, a head or a dataset by its name: the name is that of a module in its package."""

import importlib
import inspect
import pkgutil


def names(package: str, *, needs: str = "") -> list[str]:
    """The modules of a package, by name, those that define `needs` where it is given; packages in it are none."""
    found = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if not m.ispkg)
    return [n for n in found if not needs or hasattr(importlib.import_module(f"{package}.{n}"), needs)]


def module(package: str, name: str, *, needs: str):
    """Imports `package.name`, which must define `needs`; an unknown name lists those that exist."""
    found = importlib.import_module(f"{package}.{name}") if name in names(package) else None
    if found is None or not hasattr(found, needs):
        what = f" with `{needs}`" if found else ""
        raise ValueError(f"no {package}.{name}{what}; there are: {', '.join(names(package, needs=needs))}")
    return found


def refuse_unknown(options, builder, *, key: str, name: str) -> None:
    """Raises ValueError where `builder` lacks one of the options: `--config.model.stride: fcn8 has width, norm`."""
    known = inspect.signature(builder).parameters
    if unknown := [option for option in options if option not in known]:
        chosen = [option for option, p in known.items() if p.default is not p.empty]  # the others are facts of the data
        raise ValueError(
            f"--config.{key}.{unknown[0]}: {name} has {', '.join(chosen) or 'no options'}; the command line cannot take a key"
            " away: choose by the config's variants, or in a config of your own"
        )
