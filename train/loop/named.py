"""Configurations that have names: those of ``configs/``, and what plug-ins register. The one door to that package."""

from configs import describe as describe
from configs import load as load
from configs import names as names
