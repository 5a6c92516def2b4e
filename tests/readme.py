"""The fenced blocks of the README and of the pages for callers, for tests that run them as they stand."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md").read_text() + (ROOT / "docs/clients.md").read_text()


def block(language: str, words: str) -> str:
    """The fenced block of a language that contains ``words``."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENTS, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if words in text]
    return str(found)


def here(text: str, api_url: str, api_key: str) -> str:
    """A block with this stack's address and key."""
    return text.replace("localhost:8000", api_url.removeprefix("http://")).replace("hr_…", api_key)
