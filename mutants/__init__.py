"""Mutation testing: small plausible bugs in the project's own code, each of which some test must notice.

``python -m mutants`` draws a seeded sample of them by area, runs each against the tests that execute its line, and
prints the survivors and the rate of kills. No kept tool fits: they start a fresh interpreter for every mutant, and
importing jax, torch and transformers takes longer than most tests here.
"""
