"""One thread in each test process and in what it starts, since pytest runs as many processes as there are cores.

Hypothesis draws the same examples in each run, so that the gate depends on the change and not on the day.
`--hypothesis-profile=explore` draws new ones. No example has a deadline, since machines are busy at times.
"""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("gate", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("gate")
