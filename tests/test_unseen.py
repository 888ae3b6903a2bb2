"""The section of docs/limits.md on what stays unseen, and the command that writes it."""

import pytest

from tests import unseen
from tests.trainer.judge.test_evasions import trial, unseen_flood
from trainer.judge.evasions import Evasions


def test_the_document_has_a_place_for_the_section():
    text = unseen.LIMITS.read_text()
    assert unseen.written(text, "a new section").count("a new section") == text.count("a new section") + 1


def test_a_document_without_the_marks_is_named():
    with pytest.raises(ValueError, match=r"limits\.md"):
        unseen.written("no marks", "text")


def test_the_section_has_unseen_rates_by_kind_and_counts_by_what_the_agent_knows():
    flood = unseen_flood("plug-1", 86_400.0)
    trials = (trial("a", 1500.0), trial("b", None, ("source x",)))
    lines = unseen.section(Evasions(bundle="0" * 64, trials=trials, unseen=(flood,)), "2026.11.28+1").splitlines()
    assert lines[0].startswith("Bundle 2026.11.28+1, SHA-256 0000000000000000…; `python -m tests.unseen BUNDLE`.")
    assert "| plug | 1 | flood, packets/s | 10 | 20 | flood 20/s, port 53 | 0 |" in lines
    assert "| learnt | flood | 2 | 1 | 1 |" in lines
