"""Clients on several machines: the model worker of a site, and NVIDIA FLARE to carry the messages."""
