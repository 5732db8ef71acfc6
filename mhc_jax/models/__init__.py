"""The systems of the literature as named compositions of :mod:`mhc_jax.nn`, one file each."""

from mhc_jax.models.mhc_ssm import mhc_ssm

__all__ = ["mhc_ssm"]
