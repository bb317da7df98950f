"""A run from its configuration to its end: put together, trained, committed round by round, resumed, replayed."""
