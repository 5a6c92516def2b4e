"""Loads registered versions of encoders. Torch is imported only for a version that needs it."""

from headrace.features.encoders.classifier_folder import ClassifierSettings
from headrace.features.encoders.fake_encoders import FakeClassifier, FakeEmbedder, FakeImageClassifier, fake_pixels
from headrace.features.encoders.image_folder import ImageClassifierSettings
from headrace.features.encoders.image_rows import PrepareImage
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings


def load_encoder(version: ModelVersion, settings: Settings) -> Encoder:
    """Return the encoder of a version. As ``load_runner``. Raises ModelLoadError."""
    if version.is_fake:
        return FakeEmbedder(step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from headrace.features.encoders.torch_encoder import encoder_for  # noqa: PLC0415 - imports torch

    return encoder_for(folder, settings, dtype=version.dtype)


def load_classifier(version: ModelVersion, settings: Settings, found: ClassifierSettings) -> Encoder:
    """Return the classifier or cross-encoder of a version, whose folder has the settings ``found``.

    Raises ModelLoadError, as ``load_runner``.
    """
    if version.is_fake:
        return FakeClassifier(found, step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from headrace.features.encoders.torch_classifier import classifier_for  # noqa: PLC0415 - imports torch

    return classifier_for(folder, settings, dtype=version.dtype)


def load_image_classifier(
    version: ModelVersion, settings: Settings, found: ImageClassifierSettings
) -> tuple[Encoder, PrepareImage]:
    """Return the image classifier of a version with the settings ``found``, and what prepares an image for it.

    Raises ModelLoadError, as ``load_runner``.
    """
    if version.is_fake:
        return FakeImageClassifier(found, step_s=settings.fake_step_ms / 1000), fake_pixels
    folder = checked_folder(version)
    from headrace.features.encoders.torch_images import image_classifier_for, image_processor  # noqa: PLC0415 - imports torch

    return image_classifier_for(folder, settings, dtype=version.dtype), image_processor(folder)


def load_image_encoder(version: ModelVersion, settings: Settings) -> tuple[Encoder, PrepareImage, float]:
    """Return the encoder of images of a version, what prepares an image for it, and the factor of cosines.

    By the factor the cosine of an image and a text is multiplied. Raises ModelLoadError, as ``load_runner``.
    """
    if version.is_fake:
        encoder = FakeEmbedder(step_s=settings.fake_step_ms / 1000)
        return encoder, fake_pixels, encoder.scale
    folder = checked_folder(version)
    from headrace.features.encoders.torch_images import image_encoder_for, image_processor  # noqa: PLC0415 - imports torch

    made, scale = image_encoder_for(folder, settings, dtype=version.dtype)
    return made, image_processor(folder), scale
