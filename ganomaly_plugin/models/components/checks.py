# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments. Each raises a ``ValueError`` that names the argument, its value and the rule.

The restricted types of ``jsonargparse.typing`` cannot take their place: they check what comes from the command line or
from YAML, not what Python code passes.
"""

from collections.abc import Sequence


def check_at_least(minimum: float, **values: float) -> None:
    """Refuse arguments below their minimum."""
    for name, value in values.items():
        if not value >= minimum:
            msg = f"{name} is {value}; it must be at least {minimum}."
            raise ValueError(msg)


def check_choice(choices: Sequence[str], **values: str) -> None:
    """Refuse arguments that are none of the choices."""
    for name, value in values.items():
        if value not in choices:
            msg = f"{name} is {value!r}; choose one of {', '.join(choices)}."
            raise ValueError(msg)


def check_fraction(**values: float) -> None:
    """Refuse arguments outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            msg = f"{name} is {value}; it is a fraction, which lies in [0, 1]."
            raise ValueError(msg)


def check_adam(lr: float, beta1: float, beta2: float) -> None:
    """Refuse what Adam cannot train with."""
    if not lr > 0:
        msg = f"lr is {lr}; the learning rate must be positive (GANomaly's is 0.0002)."
        raise ValueError(msg)
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            msg = f"{name} is {value}; Adam's decay rates lie in [0, 1)."
            raise ValueError(msg)
