"""The folder of a run: names, checkpoints, locks."""
