"""Clients on several machines, over NVIDIA FLARE: it carries messages and knows who is who; the journal is the run.

Three kinds of process meet here. `fedmezo serve` trains and holds the journal; `fedmezo site` holds a model and its
data; between them run FLARE's own processes, in which two thin relays of ours (`relays.py`) pass bytes on. Nothing
that FLARE loads imports torch.
"""
