"""What runs inside the sandbox, on the standard library alone: a model's answer, and apart from it the tests of it."""
