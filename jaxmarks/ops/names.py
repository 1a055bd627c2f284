"""Functions by their names, with options of theirs after a colon: "wing:width=0.1,epsilon=0.02". Plain Python."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable


def function(text: str, known: Iterable[Callable], *, key: str, prefix: str = "") -> Callable:
    """One of the functions `known`, whose names may have a `prefix` that the text leaves out.

    Args:
      text: the name, and options as numbers, which are the function's own keyword arguments.
      known: those that there are.
      key: what the text is the value of, for messages.
      prefix: of the functions' names.

    Raises:
      ValueError: another name, an option that the function does not have, or one that is no number above 0.
    """
    name, _, options = text.partition(":")
    each = {one.__name__.removeprefix(prefix): one for one in known}
    if name not in each:
        raise ValueError(f"{key}={name!r}: there are {', '.join(each)}")
    defaults = {n: p.default for n, p in inspect.signature(each[name]).parameters.items() if p.kind == p.KEYWORD_ONLY}
    given = {}
    for word in filter(None, options.split(",")):
        option, _, value = word.partition("=")
        if option not in defaults:
            raise ValueError(f"{key}={text!r}: {name} has {', '.join(defaults) or 'no options'}, and no {option!r}")
        try:
            given[option] = type(defaults[option])(value)
        except ValueError:
            raise ValueError(f"{key}={text!r}: {option} is a number, as {defaults[option]}") from None
        if not 0 < given[option] < math.inf:
            raise ValueError(f"{key}={text!r}: {option} is above 0")
    return functools.partial(each[name], **given) if given else each[name]


def plain(text: str) -> str:
    """The name alone."""
    return text.partition(":")[0]
