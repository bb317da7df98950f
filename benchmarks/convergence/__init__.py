"""How many forward passes, seconds and bytes a method needs to a loss: python -m benchmarks.convergence."""
