"""Finds a body, an encoder or a head by its name, which is that of a module in its package."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping


def names(package: str, *, needs: str = "") -> list[str]:
    """Returns the names of a package's modules, without subpackages; with `needs`, only of those that define it."""
    found = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if not m.ispkg)
    return [n for n in found if not needs or hasattr(importlib.import_module(f"{package}.{n}"), needs)]


def module(package: str, name: str, *, needs: str):
    """Imports `package.name`, which must define `needs`; else raises ValueError, which lists the names that exist."""
    imported = importlib.import_module(f"{package}.{name}") if name in names(package) else None
    if imported is None or not hasattr(imported, needs):
        requirement = f" with `{needs}`" if imported else ""
        raise ValueError(f"no {package}.{name}{requirement}; choose one of {', '.join(names(package, needs=needs))}")
    return imported


def options(builder) -> dict:
    """Returns the options of a builder with their defaults; its parameters without a default are facts of the data."""
    return {name: p.default for name, p in inspect.signature(builder).parameters.items() if p.default is not p.empty}


def build(package: str, spec: Mapping, *, key: str, **facts):
    """Calls `build` of the module `spec["name"]` in `package` with the spec's other options and the facts it takes.

    An option that is not None takes precedence over the fact of the same name. `key` is the spec's config key, for
    error messages.
    """
    given = dict(spec)
    if "name" not in given:
        raise ValueError(
            f"--config.{key}={given}: the key 'name' is missing; choose one of"
            f" {', '.join(names(package, needs='build'))}"
        )
    name = given.pop("name")
    builder = module(package, name, needs="build").build
    parameters = inspect.signature(builder).parameters
    if unknown := [option for option in given if option not in parameters]:
        raise ValueError(
            f"--config.{key}.{unknown[0]}: {name} does not have this option (it has"
            f" {', '.join(options(builder)) or 'none'}); replace the whole"
            f""" section, as --config.{key}="{{'name': '{name}'}}", or choose it by a config variant"""
        )
    if missing := [k for k, p in parameters.items() if p.default is p.empty and k not in {*facts, *given}]:
        raise ValueError(
            f"--config.{key}.name={name} needs {', '.join(missing)}; the data provide only {', '.join(facts)}"
        )
    accepted = {k: fact for k, fact in facts.items() if k in parameters}
    return builder(**accepted | {k: v for k, v in given.items() if v is not None or k not in accepted})
