"""How requests for pictures are checked and counted, and which folders make pictures."""

from headrace.features.diffusion.generate.task import IMAGE_GENERATE
from headrace.features.diffusion.model_folder import FAKE, SMALL_FILES, makes_pictures, settings_of
from headrace.features.diffusion.order_inputs import order_inputs
from headrace.features.diffusion.picture_inputs import filled

PART = order_inputs(IMAGE_GENERATE, filled, settings_of, FAKE, is_folder=makes_pictures, folder_files=SMALL_FILES)
