"""`python -m pyro_hrssm` is `pyro-hrssm`: the process is set up before torch is loaded, and `cli` does the rest."""

import os

SPIN_COUNT = "1000"
"""How often an OpenMP thread that waits for another one looks again before it sleeps.

Unset, it spins for milliseconds. Where other processes want the same cores, it so keeps the very thread that it waits
for off a core: with one busy neighbour on two cores, a step took four times as long as alone, and now takes twice as
long. On an idle machine a step takes 6 % longer (docs/PERFORMANCE.md).
"""


def main() -> None:
    """Entry point of `pyro-hrssm`."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read once, as the library is loaded with torch
    # Pictures are files, whatever backend the shell of a notebook names; Matplotlib reads the name at its first import.
    os.environ["MPLBACKEND"] = "Agg"
    from pyro_hrssm.cli import main as command

    command()


if __name__ == "__main__":
    main()
