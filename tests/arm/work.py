"""The work whose instructions are counted on arm64: one part of the agent's, from its start. Runs emulated."""

import sys
from pathlib import Path

import numpy as np

from edge_agent.agent import BATCH, Agent
from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import open_file
from edge_agent.config import AgentConfig, ScoringConfig
from edge_agent.contract import bundle as bundles
from edge_agent.detection.runtime import BATCHES, Model


def main(part: str, what: str, folder: Path) -> int:
    """Do ``part`` for ``what``, a capture or a number of rows for the autoencoder; return how many packets or rows.

    ``part`` is kernel, autoencoder, all, or a number: all of it with that budget of scoring.
    """
    bundle = bundles.load(folder)
    if part == "autoencoder":
        model, batches = Model(bundle.autoencoder), int(what) // BATCHES[-1]
        inputs = np.random.default_rng(1).normal(size=(BATCHES[-1], model.inputs)).astype(np.float32)
        for _ in range(batches):
            model(inputs)
        return batches * len(inputs)
    if part != "kernel":
        scoring = ScoringConfig() if part == "all" else ScoringConfig(int(part))
        agent = Agent(AgentConfig(scoring=scoring), bundle, seed=1)
        with open_file(what) as source:
            for _alert in agent.alerts(source):
                pass
        return agent.extractor.counts()["frames"]
    extractor = Extractor(seed=1)
    with open_file(what) as source:
        return sum(iter(lambda: len(extractor.push(source, BATCH)), 0))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
