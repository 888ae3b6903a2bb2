"""The vote rule in its two formulations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.detection.vote import vote_statistic

SCORES = st.integers(1, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 1e6, width=32)))


@given(SCORES, st.integers(1, 20), st.integers(0, 10))
def test_the_vote_statistic_exceeds_a_limit_exactly_when_k_of_the_last_w_scores_do(scores, k, more):
    """The link between a limit and the detector's vote: both must mean the same."""
    w = k + more
    statistic = vote_statistic(scores, k, w)
    for limit in (0.5, float(np.median(scores)), float(scores.max())):
        voted = [int((scores[max(0, i - w + 1) : i + 1] > limit).sum()) >= k for i in range(len(scores))]
        assert (statistic > limit).tolist() == voted
