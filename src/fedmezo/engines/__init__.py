"""Where clients run. Every engine takes a plan and returns reports; the algorithm is the same in all of them."""
