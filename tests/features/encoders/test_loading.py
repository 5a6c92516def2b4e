"""What a version is loaded as: an encoder without weights, or one from its folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.features.encoders import loading
from headrace.features.encoders.classify.inputs import FAKE as FAKE_CLASSIFIER
from headrace.features.encoders.fake_encoders import FakeClassifier, FakeEmbedder, FakeImageClassifier, fake_pixels
from headrace.features.images.classify.inputs import FAKE as FAKE_IMAGES
from headrace.store.settings import Settings
from tests.models.loading.test_load import version

SETTINGS = Settings(device="cpu", fake_step_ms=250)


@pytest.mark.parametrize(
    ("loaded", "kind"),
    [
        (lambda fake: loading.load_encoder(fake, SETTINGS), FakeEmbedder),
        (lambda fake: loading.load_classifier(fake, SETTINGS, FAKE_CLASSIFIER), FakeClassifier),
        (lambda fake: loading.load_image_classifier(fake, SETTINGS, FAKE_IMAGES)[0], FakeImageClassifier),
        (lambda fake: loading.load_image_encoder(fake, SETTINGS)[0], FakeEmbedder),
    ],
)
def test_a_model_without_weights_takes_the_time_that_the_settings_say(
    loaded: Callable[[Any], Any], kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    found = loaded(replace(version(Path("fake"), "fake"), runner="fake"))
    assert type(found) is kind
    monkeypatch.setattr(found, "sleep", slept.append)
    assert found.run([]) == []
    assert slept == [0.25]


@pytest.mark.parametrize(
    ("place", "loaded"),
    [
        ("headrace.features.encoders.torch_encoder.encoder_for", lambda one: loading.load_encoder(one, SETTINGS)),
        (
            "headrace.features.encoders.torch_classifier.classifier_for",
            lambda one: loading.load_classifier(one, SETTINGS, FAKE_CLASSIFIER),
        ),
        (
            "headrace.features.encoders.torch_images.image_classifier_for",
            lambda one: loading.load_image_classifier(one, SETTINGS, FAKE_IMAGES)[0],
        ),
        (
            "headrace.features.encoders.torch_images.image_encoder_for",
            lambda one: loading.load_image_encoder(one, SETTINGS)[0],
        ),
    ],
)
def test_a_version_with_weights_is_loaded_from_its_folder_in_its_format(
    place: str, loaded: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def loader(*arguments: Any, dtype: str | None = None) -> Any:
        asked.append((*arguments, dtype))
        return ("made", 2.0)

    monkeypatch.setattr(place, loader)
    monkeypatch.setattr(loading, "checked_folder", lambda one: Path(one.source))
    monkeypatch.setattr("headrace.features.encoders.torch_images.image_processor", lambda folder: ("prepare", folder))
    one = version(tmp_path, "digest", dtype="bfloat16")
    assert loaded(one) in (("made", 2.0), "made")
    assert asked == [(tmp_path, SETTINGS, "bfloat16")]
    if "image_encoder" in place:
        assert loading.load_image_encoder(one, SETTINGS)[1:] == (("prepare", tmp_path), 2.0)


def test_the_fakes_of_images_prepare_by_digest() -> None:
    fake = replace(version(Path("fake"), "fake"), runner="fake")
    assert loading.load_image_classifier(fake, SETTINGS, FAKE_IMAGES)[1] is fake_pixels
    assert loading.load_image_encoder(fake, SETTINGS)[1:] == (fake_pixels, 10.0)
