"""The entry point: the process is set up before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import pyro_hrssm
from pyro_hrssm.__main__ import SPIN_COUNT

WATCHED = """
import os, sys
import pyro_hrssm.__main__ as entry
assert "torch" not in sys.modules
try:
    entry.main()
finally:
    print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


def test_every_public_name_is_found() -> None:
    assert set(pyro_hrssm._HOMES) == set(pyro_hrssm.__all__)
    for name in pyro_hrssm.__all__:
        assert getattr(pyro_hrssm, name).__name__ == name
    assert {*pyro_hrssm.__all__, "__version__"} <= set(dir(pyro_hrssm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pyro_hrssm.nothing


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_spin_as_the_user_says_and_else_briefly(given: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "--help"],
        env=inherited | given, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"{expected} True", done.stderr
