"""The words of counters: each counter that health publishes has some, no other has, and the document has the same."""

import os
import threading
from pathlib import Path

import pytest

from edge_agent import service
from edge_agent.agent import Agent
from edge_agent.capture.sources import Interfaces
from edge_agent.config import AgentConfig, EvidenceConfig, OutboxConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.counters import COUNTERS, GROUPS, grouped, tables
from edge_agent.publisher import Publisher
from tests.broker import free_port
from tests.conftest import Home

DOCUMENT = Path(__file__).parents[3] / "docs" / "counters.md"
NAMES = [name for known in COUNTERS.values() for name in known]
OF_THE_COMMAND = {"alerts_unprinted": 0, "log_lines_lost": 0}
"""The counters of `agent run` that are in no part of the agent: of its stdout and its log."""


@pytest.mark.skipif(os.geteuid() != 0, reason="captures on the loopback interface, which needs root")
def test_every_counter_that_health_publishes_has_words_and_no_other_has(home: Home, tmp_path: Path) -> None:
    """The agent has every part that counts: evidence, check-ins, learning, control, outbox, live interfaces."""
    broker = BrokerConfig().at(f"127.0.0.1:{free_port()}")
    config = AgentConfig(outbox=OutboxConfig(path=tmp_path / "box.sqlite"), broker=broker)
    publisher = Publisher(config, controlled=True)
    evidence = EvidenceConfig(path=tmp_path / "evidence")
    agent = Agent(config, bundles.load(home.bundle), state=publisher.state, evidence=evidence)
    with Interfaces(["lo"], config.capture.live()) as interfaces:
        stop = threading.Event()
        stop.set()
        with publisher.running():
            seen = service.run(agent, interfaces, lambda *alerts: None, stop, publisher, more=lambda: OF_THE_COMMAND)
            counts = agent.counts() | interfaces.count() | publisher.counts()
        assert set(counts | seen) == set(NAMES)


def test_a_counter_has_one_place():
    assert len(NAMES) == len(set(NAMES))
    assert list(COUNTERS) == list(GROUPS)


def test_the_document_has_the_tables_that_are_made_from_the_words():
    """`python -m edge_agent.contract.counters` prints them anew."""
    text = DOCUMENT.read_text()
    assert text[text.index("## ") :] == tables()


def test_a_counter_of_another_version_is_shown_by_its_name_and_none_that_is_0_is():
    shown = dict(grouped({"dropped": 3, "frames": 0, "from_2031": 7, "later": 0}))
    assert [(name, value) for name, value, _ in shown["traffic"]] == [("dropped", 3)]
    assert shown[""] == [("from_2031", 7, None)]
    assert not any(shown[group] for group in GROUPS if group != "traffic")
