"""What every command sets before torch is imported."""

import os


def quiet_threads() -> None:
    """Make idle OpenMP threads sleep, unless OMP_WAIT_POLICY says otherwise. Call it before torch is imported.

    Threads that spin while they wait take the cores from each other: on a busy CPU a step takes several times longer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
