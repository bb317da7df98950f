"""Many runs together: sweeps over a configuration's keys, and the paper's experiments."""
