"""The federated algorithm: rates, client work, aggregation and the round. No files, no network, no model library."""
