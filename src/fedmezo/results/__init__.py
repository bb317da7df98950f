"""What was measured, and how people see it: metrics, the terminal, pictures and pages."""
