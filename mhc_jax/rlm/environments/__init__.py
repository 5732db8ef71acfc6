"""Where the code of a model runs: never in this process."""
