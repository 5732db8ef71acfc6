"""Recursive language models: a model that reads a long context by writing code (Zhang et al., arXiv 2512.24601)."""
