"""Work in a copy of the process: what it returns, what it changes, and how it fails."""

import os

import pytest

from trainer.judge.copies import CopyError, in_copy


def test_changes_in_a_copy_are_lost_and_its_result_is_not():
    seen = [1]

    def work() -> tuple[int, list[int]]:
        seen.append(2)
        return os.getpid(), seen

    child, result = in_copy(work)
    assert child != os.getpid()
    assert (result, seen) == ([1, 2], [1])


def test_results_larger_than_a_pipe_arrive():
    assert len(in_copy(lambda: b"x" * 5_000_000)) == 5_000_000


def test_work_that_breaks_says_where():
    def broken() -> None:
        raise ValueError("no such day")

    with pytest.raises(CopyError, match=r"(?s)broken.*no such day"):
        in_copy(broken)


def test_a_copy_that_is_ended_from_outside_is_an_error():
    with pytest.raises(CopyError, match="ended from outside"):
        in_copy(lambda: os._exit(9))
