"""Which labels are learned as words for a secret: those that no word is listed for."""

from pathlib import Path

import pytest

from supply_chain.secret_words import words


@pytest.mark.parametrize(
    ("sort", "labels"),
    [("password", ["New password", "Vrelmot"]), ("key", ["API key", "Session key", "Vrelmot"])],
)
def test_a_label_is_learned_if_none_of_its_words_is_listed(tmp_path: Path, sort: str, labels: list[str]) -> None:
    listed = tmp_path / "labels.txt"
    listed.write_text("\n".join([f"[held_{sort}]", *labels]))
    assert words([listed], sort, frozenset()) == ["vrelmot"]
