"""The table without weights."""

from dataclasses import replace

import pytest

from headrace.features.predict.fake_tabular import FakeTabular
from headrace.features.predict.feature_schema import EncodedRows
from headrace.features.predict.inputs import FAKE as TABLE
from headrace.models.engine.requests import EncodeRow
from tests.models.runners.making import floats


def test_the_fake_table_gives_the_first_feature_all_of_the_score() -> None:
    encoded = EncodedRows(((1.0,), (2.0,)), ((0,), (1,)))
    asked = [EncodeRow("r", (0,), replace(encoded, explain=explain), 0) for explain in (False, True)]
    plain, explained = FakeTabular().run(asked)
    assert floats(FakeTabular().run([EncodeRow("r", (1,), encoded, 1)])[0]) != floats(plain)
    (score,) = floats(plain)
    assert 0 <= score < 1
    others = [0.0] * (len(TABLE.features) - 1)
    assert floats(explained) == pytest.approx([score, score - 0.5, *others, 0.5, 0.0], abs=1e-4)
