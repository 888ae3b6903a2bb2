"""What is counted on an arm64: one part of the agent's work, done so many times. Runs there, not here."""

import sys
from pathlib import Path

import numpy as np

from edge_agent.agent import BATCH, Agent
from edge_agent.capture import open_file
from edge_agent.config import AgentConfig, ScoringConfig
from edge_agent.contract import bundle as bundles
from edge_agent.features import Extractor
from edge_agent.runtime import Model


def main(part: str, times: int, file: Path, folder: Path) -> int:
    """Do ``part`` ``times`` times; how many packets or rows each of them has. ``flood``: once, with that budget."""
    bundle = bundles.load(folder)
    if part == "flood":
        agent = Agent(AgentConfig(scoring=ScoringConfig(times)), bundle, seed=1)
        with open_file(file) as source:
            for _alert in agent.alerts(source):
                pass
        return agent.counts()["rows"]
    model, agent, extractor = Model(bundle.autoencoder), Agent(AgentConfig(), bundle, seed=1), Extractor(seed=1)
    inputs = np.random.default_rng(1).normal(size=(1024, model.inputs)).astype(np.float32)
    model(inputs)  # plans and buffers are made at the first call
    with open_file(file) as source:
        packets = sum(iter(lambda: len(extractor.push(source, BATCH)), 0))
    for _ in range(times):
        if part == "autoencoder":
            model(inputs)
            continue
        with open_file(file) as source:
            if part == "kernel":
                while len(extractor.push(source, BATCH)):
                    pass
            else:
                for _alert in agent.alerts(source):
                    pass
    return len(inputs) if part == "autoencoder" else packets


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])))
