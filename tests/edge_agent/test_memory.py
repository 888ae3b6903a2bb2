"""Memory of the whole process: what starting took is given back, and nothing that was in it is lost."""

import subprocess
import sys

PROGRAM = """
import hashlib, sys
import numpy as np
from paho.mqtt import client
from edge_agent import agent
from edge_agent.capture.features import Extractor, give_back_memory
from tests.traffic import scan, steady

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssAnon"))]

frames = list(steady(scan(500), 10**18, 100.0))
before = Extractor(64, seed=1).push_frames(frames).values.tobytes()
library, own = resident()[1], resident()[0]
give_back_memory()
library_after, own_after = resident()[1], resident()[0]
after = Extractor(64, seed=1).push_frames(frames).values.tobytes()
assert before == after
assert np.linalg.inv(np.eye(3)).sum() == 3.0
print(library, library_after, own, own_after)
"""


def test_libraries_pages_of_the_start_are_given_back_and_all_goes_on_working() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library, after, own, own_after = map(int, done.stdout.split())
    assert after < 0.7 * library
    assert own_after <= own
