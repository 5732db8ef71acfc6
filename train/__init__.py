"""Training and everything around it. The modules that stand here are commands, or serve them."""

from train import interrupt

interrupt.guard_command()
