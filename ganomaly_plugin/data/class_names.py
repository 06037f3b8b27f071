# SPDX-License-Identifier: Apache-2.0
"""Find a class by what a user wrote, whatever YAML made of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

ClassName = str | int | float | bool
"""A class by name or number. Text comes first, so that the command line keeps what was written: ``01`` stays text."""


def find_class(argument: str, chosen: Any, names: Sequence[str], synonyms: Mapping[str, str]) -> int:
    """Return the position of the chosen class.

    Text is a name as it is written, or without regard to case, or a synonym. YAML turns an unquoted ``01`` into a
    number, ``yes`` into a boolean and ``2024-01-31`` into a date: such a value is every name that would be read as it.
    A number that is no name is a position, from 0.

    Args:
        argument: Name of the argument, for messages.
        chosen: What the user gave; ``None`` is the first class.
        names: The classes.
        synonyms: Other names of classes, in lower case.

    Raises:
        ValueError: If no class, or more than one, is meant; the message says which there are and how to quote.

    Example:
        >>> find_class("abnormal_class", 1, ["01", "02"], {})
        0
    """
    chosen = chosen.item() if isinstance(chosen, np.generic) else chosen
    found = list(_candidates(chosen, names, synonyms))
    if chosen is None and not found:
        return 0
    if not found:
        msg = f"{argument} is {chosen!r}, but must be one of {', '.join(names)}, or its number from 0."
        raise ValueError(msg)
    if len(found) > 1 or chosen is None:
        meant = " or ".join(repr(names[position]) for position in found)
        given = "None or not given" if chosen is None else repr(chosen)
        example = names[found[0]]
        msg = (
            f"{argument} is {given}, which may mean the class {meant}: write the name in two pairs of quotes, "
            f"\"'{example}'\", in YAML and on the command line alike."
        )
        raise ValueError(msg)
    return found[0]


def _candidates(chosen: Any, names: Sequence[str], synonyms: Mapping[str, str]) -> Iterator[int]:
    """Yield the positions of all classes that may be meant."""
    if not isinstance(chosen, str):
        named = [position for position, name in enumerate(names) if _may_be_read_as(name, chosen)]
        is_position = type(chosen) is int and 0 <= chosen < len(names)
        yield from named or ([chosen] if is_position else [])
    elif chosen in names:
        yield names.index(chosen)
    elif chosen[:1] in {"'", '"'} and chosen[-1:] == chosen[:1]:  # Quotes that were left in place.
        yield from _candidates(chosen[1:-1], names, synonyms)
    else:
        folded = synonyms.get(chosen.lower(), chosen.lower())
        named = [position for position, name in enumerate(names) if name.lower() == folded]
        is_number = chosen.isdecimal() and chosen == str(int(chosen))
        yield from named or (_candidates(int(chosen), names, synonyms) if is_number else [])


def _may_be_read_as(name: str, value: Any) -> bool:
    """Whether a reader of YAML may turn an unquoted name into a value that is no text."""
    return any(type(read) is type(value) and read == value for read in (_read_yaml(name), _read_number(name)))


def _read_yaml(name: str) -> Any:
    try:
        return yaml.safe_load(name)
    except (ValueError, yaml.YAMLError):
        return name


def _read_number(name: str) -> Any:
    """Read a number as JSON and YAML 1.2 do: to them ``010`` is not octal, and ``1e3`` is a number."""
    for kind in (int, float):
        try:
            return kind(name)
        except ValueError:
            continue
    return name
