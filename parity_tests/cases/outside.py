"""Registered parts that no system has, such as those of a plug-in: each at its small size in a tiny model."""

from collections.abc import Iterator

from mhc_jax import registry
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.residual import StaticMHCConfig
from parity_tests.cases.models import forward, gradients
from parity_tests.compare import Case
from parity_tests.systems import POSITIONS, SYSTEMS, VOCAB, System
from parity_tests.systems.gpt import tiny_gpt

# The model that holds a part of each axis.
HOSTS = {
    "model": lambda part: part.replace(vocab_size=VOCAB, max_len=POSITIONS),
    "norm": lambda part: tiny_gpt("mhc", norm=part),
    "mixer": lambda part: tiny_gpt("mhc", mixer=part),
    "channel": lambda part: tiny_gpt("mhc", mlp=part),
    "projection": lambda part: tiny_gpt("mhc", residual=StaticMHCConfig(projection=part)),
    "ends": lambda part: tiny_gpt("mhc", ends=part),
    "rotary_scaling": lambda part: tiny_gpt(mixer=AttentionConfig(heads=2, rotary="half", rotary_scaling=part)),
}


def cases() -> Iterator[Case]:
    systems = [*SYSTEMS.values(), *(System(name, tiny_gpt(name)) for name in registry.names("topology"))]
    covered = frozenset().union(*(system.covers for system in systems))
    for axis, host in HOSTS.items():
        for kind in registry.names(axis):
            if f"{axis}:{kind}" not in covered:
                system = System(f"{axis} {kind}", host(registry.get(axis, kind)().small()))
                yield forward(system)
                yield gradients(system)
