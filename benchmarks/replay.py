"""Seconds to replay steps: python -m benchmarks.replay --threads 2. Beside torch.normal and a plain update."""

from __future__ import annotations

import torch

from benchmarks import common
from benchmarks.common import Row
from fedmezo.zo.noise import GAUSSIAN, RADEMACHER, Noise
from fedmezo.zo.replay import Address, Pace, apply_, linear_moves

STEPS, PARAMETERS = 90, 2_700_000


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    steps = 9 if options.quick else STEPS
    theta = torch.zeros(PARAMETERS, device=options.device)
    moves = linear_moves(Pace(1e-5), [0.5] * steps, Address(1, 0, 0), directions=1)
    generator = torch.Generator(options.device).manual_seed(1)

    def with_torch_normal() -> None:
        for _ in range(steps):
            theta.sub_(torch.normal(0.0, 1.0, theta.shape, generator=generator, device=theta.device), alpha=1e-5)

    forms = {
        "gaussian": lambda: apply_(theta, moves, Noise(GAUSSIAN)),
        "gaussian, compiled": lambda: apply_(theta, moves, Noise(GAUSSIAN, compiled=True)),
        "rademacher": lambda: apply_(theta, moves, Noise(RADEMACHER)),
        "rademacher, compiled": lambda: apply_(theta, moves, Noise(RADEMACHER, compiled=True)),
        "torch.normal and subtract": with_torch_normal,
    }
    times = common.interleaved(forms, 3, options.device)
    rows = [Row(f"{name}, {STEPS} steps", value * STEPS / steps, "s") for name, value in times.items()]
    rows += [
        Row(f"{name}, rate", steps * PARAMETERS / value / 1e6, "million elements/s") for name, value in times.items()
    ]
    common.report("replay", rows, options)


if __name__ == "__main__":
    main()
