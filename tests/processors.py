"""The numeric tests as other processors would run them: with fewer instructions, and with two threads.

Results may differ in their last bits from one processor to another; tests may not. So tolerances follow from the
arithmetic, and this command shows it: ``python tests/processors.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

TESTS = (
    "tests/server", "tests/client", "tests/tasks", "tests/test_engines.py", "tests/test_methods.py",
    "tests/test_rounds.py", "tests/test_state.py",
)  # fmt: skip
#: Sets of instructions that PyTorch has kernels for, the smallest first.
CAPABILITIES = ("default", "avx2", "avx512")


def main() -> int:
    """Run the tests with the smallest set of instructions, and with the next smaller one and two threads; the first
    failure stops."""
    own = torch.backends.cpu.get_cpu_capability().lower()
    smaller = CAPABILITIES[: CAPABILITIES.index(own)] if own in CAPABILITIES else ()
    # `make test` has one thread and all instructions.
    for capability, threads in (*((one, "1") for one in smaller[:1]), ((smaller[1:] or (own,))[-1], "2")):
        print(f"Numeric tests with the instructions {capability}, threads: {threads}", flush=True)
        settings = {"OMP_NUM_THREADS": threads, "POLYCLINIC_TEST_THREADS": threads}
        settings |= {"ATEN_CPU_CAPABILITY": capability} if capability != own else {}
        # Two processes with two threads each would wait for each other on two cores.
        workers = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"] if threads == "1" else []
        command = [sys.executable, "-m", "pytest", *workers, *TESTS]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], env=os.environ | settings, check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
