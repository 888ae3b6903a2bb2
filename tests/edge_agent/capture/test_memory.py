"""Memory of the whole process: the memory that only starting needed is given back, and everything still works."""

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
library, private = resident()[1], resident()[0]
give_back_memory()
library_after, private_after = resident()[1], resident()[0]
after = Extractor(64, seed=1).push_frames(frames).values.tobytes()
assert before == after
assert np.linalg.inv(np.eye(3)).sum() == 3.0
print(library, library_after, private, private_after)
"""


def test_pages_of_libraries_that_only_the_start_needed_are_given_back_and_everything_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library, library_after, private, private_after = map(int, done.stdout.split())
    assert library_after < 0.7 * library
    assert private_after <= private
