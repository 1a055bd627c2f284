"""Looks up functions by name, with options after a colon: "wing:width=0.1,epsilon=0.02". Plain Python."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable


def resolve(text: str, known: Iterable[Callable], *, key: str, prefix: str = "") -> Callable:
    """Returns the function among `known` that the text names, with the text's options bound.

    Args:
      text: the name and the options: numeric values of the function's keyword-only arguments.
      known: the functions to choose from.
      key: the config key of the text, for error messages.
      prefix: prefix of the functions' names that the text omits.

    Raises:
      ValueError: an unknown name, an option that the function does not have, or a value that is not a number above 0.
    """
    name, _, options = text.partition(":")
    named = {function.__name__.removeprefix(prefix): function for function in known}
    if name not in named:
        raise ValueError(f"{key}={name!r}: choose one of {', '.join(named)}")
    defaults = {n: p.default for n, p in inspect.signature(named[name]).parameters.items() if p.kind == p.KEYWORD_ONLY}
    values = {}
    for word in filter(None, options.split(",")):
        option, _, value = word.partition("=")
        if option not in defaults:
            raise ValueError(
                f"{key}={text!r}: {name} has no option {option!r}; it has {', '.join(defaults) or 'no options'}"
            )
        try:
            values[option] = type(defaults[option])(value)
        except ValueError:
            raise ValueError(f"{key}={text!r}: {option} must be a number, as {defaults[option]}") from None
        if not 0 < values[option] < math.inf:
            raise ValueError(f"{key}={text!r}: {option} must be finite and above 0")
    return functools.partial(named[name], **values) if values else named[name]


def base_name(text: str) -> str:
    """Returns the name without the options."""
    return text.partition(":")[0]
