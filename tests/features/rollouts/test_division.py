"""Aliases with a rollout are known with their version, so that others cost no statement of rollouts."""

from dataclasses import replace

import pytest

from headrace.features.rollouts.changes import change
from headrace.features.rollouts.division import is_indifferent
from headrace.features.rollouts.transitions import RolloutAction, Transition
from headrace.store.db.database import Database
from headrace.store.payloads.prompt_reference import DefaultTemplate
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.models import resolve
from headrace.store.registry.versions import set_alias
from tests.features.rollouts.conftest import StartRollout
from tests.producer_api.submission.steps.making import VERSION, request


@pytest.mark.parametrize("name", ["tiny", "tiny@default"])
def test_an_alias_is_divided_while_its_rollout_is_active(begin: StartRollout, db: Database, name: str) -> None:
    rollout = begin()
    set_alias(db, "tiny", "other", 1, "tests")
    assert (resolve(db, name).version, resolve(db, name).is_divided) == (1, True)
    assert [resolve(db, other).is_divided for other in ("tiny@1", "tiny@2", "tiny@other")] == [False] * 3
    change(db, rollout.id, Transition(RolloutAction.ABORT, "enough"), "tests")
    assert not resolve(db, name).is_divided


def test_versions_that_differ_in_their_template_alone_are_alike_for_what_does_without_it() -> None:
    brief = {"id": "p", "name": "n", "version": 1, "digest": "d", "messages": [{"role": "system", "content": "Brief."}]}
    template = DefaultTemplate.model_validate(brief)
    other = replace(VERSION, version=4, base_model="tiny", base_version=3, template=template)
    raw = request({"prompt": "hi"})
    assert is_indifferent(raw, VERSION, other)
    assert not is_indifferent(request(), VERSION, other)
    assert not is_indifferent(raw, VERSION, replace(other, sampling=SamplingDefaults(temperature=0.5)))
    assert not is_indifferent(raw, VERSION, replace(other, base_version=5))
    assert not is_indifferent(raw, VERSION, replace(VERSION, version=4))
