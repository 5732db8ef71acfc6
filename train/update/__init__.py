"""The training step: state, optimizer, gradient."""
