"""What runs without torch must not import it, by any path."""

import subprocess
import sys

import pytest

_REPORT = "; import sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"


@pytest.mark.parametrize(
    "code",
    [
        "import headrace.models.catalog",
        "import headrace.models.families.model_folder",
        "import headrace.prompts.tokenizer, headrace.prompts.tasks.generate",
        "from datetime import *; from headrace.models.loading.load import load_runner; "
        "from headrace.store.registry.models import ModelVersion; "
        "from headrace.store.settings import Settings; now = datetime.now(timezone.utc); "
        "load_runner(ModelVersion('f', 1, 'generate', 'fake', '', '', 'auto', 64, {}, now, None), Settings())",
    ],
)
def test_no_torch(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code + _REPORT], timeout=240, check=False)
    assert done.returncode == 0
