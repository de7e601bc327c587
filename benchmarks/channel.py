"""What steps of the channel cost. Run it on a machine that does nothing else:

python benchmarks/channel.py [--only NAME ...] [--weights N] [--threads N]

Each line is a change of 25 million weights (100 MB) in its third round: how long a site takes to close it, with all
that it keeps for the next round, and the server to open it, against adding two such changes; how many megabytes of
the change that is in a second; and how large what was sent is against the change.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from channel_line import Line, size

#: Steps and their options; least megabytes a second at the site.
STEPS: list[tuple[str, dict[str, object], int | None]] = [
    ("float16", {}, 1000), ("bfloat16", {}, 1000), ("bfloat16", {"feedback": False}, 1000), ("int8", {}, 1000),
    ("qsgd", {}, None), ("top_k", {"share": 0.01}, 300), ("top_k", {"share": 0.1}, 300),
    ("top_k", {"share": 0.01, "values": "int8"}, 300), ("random_k", {"share": 0.01}, None), ("power_sgd", {}, None),
    ("zstd", {}, None),
]  # fmt: skip
TURNS = 3


def least(work: Callable[[], object], turns: int = TURNS) -> float:
    """Least seconds of several turns."""
    found = []
    for _ in range(turns):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def measure(name: str, options: dict[str, object], weights: int, budget: int | None) -> None:
    """One step's line."""
    side = 1000
    one = Line((name, options), shapes=[(weights // side, side)])
    source = torch.Generator().manual_seed(0)
    changes = [torch.randn(weights, generator=source) * 1e-3 for _ in range(2)]
    total = torch.zeros(weights)
    plain = least(lambda: torch.add(changes[0], changes[1], out=total), 5)
    one.send(changes[0])
    end = one.ends[name]
    kept, packed = end.kept, {"change": changes[1], "statistics": torch.zeros(0)}

    def close() -> None:
        end.kept = kept
        end.close(packed)

    closing = least(close)
    sent = end.close(packed)
    opening = least(lambda: one.see(sent))
    asked = f"(at least {budget})" if budget else ""
    megabytes = weights * 4 / 1e6
    print(
        f"{name + ' ' + (str(options) if options else ''):<48} close {closing / plain:6.1f} x, open "
        f"{opening / plain:5.1f} x adding; {megabytes / closing:6.0f} MB/s {asked:<15} "
        f"{size(sent) / (4 * weights):7.4f} of the bytes",
        flush=True,
    )


def main() -> None:
    """All lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, options, budget in STEPS:
        if arguments.only is None or name in arguments.only:
            measure(name, options, arguments.weights, budget)


if __name__ == "__main__":
    main()
