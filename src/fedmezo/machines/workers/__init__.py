"""Many processes for one simulation: Ray starts them, here or on a cluster, and clients are dealt to them."""
