"""Checks that a model keeps what it promises, one matter a file; :mod:`train.validate` runs them."""
