"""Numbers of a search that the documents promise are those of the code."""

import pytest

from headrace.features.retrieval.search import NUM_CANDIDATES, RANK_OFFSET
from tests.store.test_documented_limits import DOCS


@pytest.mark.parametrize(
    "promise",
    [f"| the {NUM_CANDIDATES} passages with the largest cosine |", f"the sum of weight / ({RANK_OFFSET} + rank)"],
)
def test_a_number_is_the_one_that_its_page_names(promise: str) -> None:
    assert promise in (DOCS / "retrieval.md").read_text()
