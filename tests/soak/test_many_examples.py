"""The properties of tests/test_properties.py for thousands of examples, in a process that starts with that profile."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
def test_properties_hold_for_ten_thousand_examples(capsys):
    command = [sys.executable, "-m", "pytest", "tests/test_properties.py", "-q", "--hypothesis-show-statistics"]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "soak"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    passing = [int(n) for n in re.findall(r"(\d+) passing", done.stdout)]
    assert sum(passing) >= 10_000
