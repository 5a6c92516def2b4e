"""The README's fenced blocks, for whoever runs them as they stand."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str, words: str) -> str:
    """The fenced block of a language that contains ``words``."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if words in text]
    return str(found)


def here(text: str, api_url: str, api_key: str) -> str:
    """A block with this stack's address and key."""
    return text.replace("localhost:8000", api_url.removeprefix("http://")).replace("hr_…", api_key)
