"""The numbers that a field of a configuration takes: a table by name, held against what ``validate`` refuses."""

import dataclasses
import math

import pytest

from mhc_jax import ConfigError

PROBES = (-2, -1, -1e-9, 0, 1e-9, 0.5, 1 - 1e-9, 1, 1.5, 2, 3, 4, 10**6, math.inf, math.nan)
COUNT, NATURAL = {"from 1": lambda x: x >= 1}, {"from 0": lambda x: x >= 0}
POSITIVE, RATE = {"above 0": lambda x: x > 0}, {"from 0, below 1": lambda x: 0 <= x < 1}
SHARE, UPPER = {"above 0, to 1": lambda x: 0 < x <= 1}, {"from 0 to 1": lambda x: 0 <= x <= 1}
ANY = {"any": lambda x: True}


def numbers(config):
    """Fields that hold a number, with its type."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: type(value) for name, value in values.items() if type(value) in (int, float)}


def check(config, table):
    """Every number of ``config`` is in the table, and each probe is taken or refused as it says; so is another type."""
    for field in dataclasses.fields(config):
        with pytest.raises(ConfigError, match=field.name):
            config.replace(**{field.name: object()}).validate()
    assert numbers(config).keys() == table.keys()
    for name, kind in numbers(config).items():
        ((words, fits),) = table[name].items()
        for probe in PROBES:
            if kind is int and probe != int(probe if math.isfinite(probe) else 0):
                continue
            taken = True
            try:
                config.replace(**{name: kind(probe)}).validate()
            except ConfigError:
                taken = False
            expected = math.isfinite(probe) and fits(probe)
            assert taken == expected, f"{type(config).__name__}.{name} = {probe}: the table says {words}"
