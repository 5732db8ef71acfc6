"""Modules: they hold parameters and call :mod:`torch_ref.ops`."""
