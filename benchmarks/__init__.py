"""Time, memory, start-up and replay, measured. A package, since libraries install one of the same name."""
