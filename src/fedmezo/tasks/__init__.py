"""What a tuned model can do: losses, answers, and benchmarks, before and after tuning."""
