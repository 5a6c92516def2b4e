"""Every command that the documents name exists, and every link leads somewhere."""

import re
from pathlib import Path

import pytest

from headrace.cli.tree import TREE
from headrace.features.encoders.embed.task import EmbedInput, EmbedRequest
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput, GenerateRequest

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
MENTION = r"(?:^|[`/ ]){} ([a-z][a-z-]+)"


def prose_of(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_of(document: Path) -> str:
    """The fenced blocks and the inline code of a document, a line each; prose names nothing to run."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", prose_of(document))
    return "\n".join([*blocks, *inline])


def anchors_of(document: Path) -> set[str]:
    """The anchors that Git hosts, and the site, make of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, *RESULTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_its_links_lead_to_files_and_headings(document: Path) -> None:
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", prose_of(document))):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = document.parent / path if path else document
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors_of(target), f"{link}: there is no such heading"


@pytest.mark.whole
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_commands_targets_and_settings_exist(document: Path) -> None:
    code = code_of(document)
    verbs = set(re.findall(MENTION.format("headrace"), code, re.MULTILINE))
    assert verbs <= set(TREE)
    targets = set(re.findall(MENTION.format("make"), code, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    settings = {name.removeprefix("HEADRACE_").lower() for name in re.findall(r"\bHEADRACE_[A-Z_]+[A-Z]\b", code)}
    assert settings <= set(Settings.model_fields)


def test_the_readme_names_the_main_commands() -> None:
    code = code_of(ROOT / "README.md")
    assert {"submit", "jobs"} <= set(re.findall(MENTION.format("headrace"), code, re.MULTILINE))
    assert {"demo", "test", "up"} <= set(re.findall(MENTION.format("make"), code, re.MULTILINE))


@pytest.mark.whole
def test_the_tests_that_the_pages_name_exist() -> None:
    named = {
        (page.name, path)
        for page in (ROOT / "docs").glob("*.md")
        for path in re.findall(r"`(tests/[\w/.]+)(?:::\w+)?`", page.read_text())
    }
    assert [one for one in sorted(named) if not (ROOT / one[1]).exists()] == []


PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}


def is_module_or_name_in_one(dotted: str) -> bool:
    """True if the path leads to a module, or to a name that its last module has in its text."""
    path, parts = ROOT, dotted.split(".")
    while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").is_file()):
        path /= parts.pop(0)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return not parts or re.search(rf"\b{parts[0]}\b", source.read_text()) is not None


@pytest.mark.whole
def test_the_modules_that_the_code_names_exist() -> None:
    named = {
        (str(source.relative_to(ROOT)), dotted)
        for package in PACKAGES
        for source in (ROOT / package).rglob("*.py")
        for dotted in re.findall(r"``([a-z]\w*(?:\.\w+)+)``", source.read_text())
        if dotted.partition(".")[0] in PACKAGES and not dotted.endswith(".py")
    }
    assert len(named) > 50
    assert [one for one in sorted(named) if not is_module_or_name_in_one(one[1])] == []


def test_the_reference_of_jobs_names_every_field_of_the_body() -> None:
    text = (ROOT / "docs" / "jobs.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    shapes = (GenerateRequest, GenerateInput, Sampling, EmbedRequest, EmbedInput)
    fields = {name for shape in shapes for name in shape.model_fields} - {"texts", "images"}
    assert rows == fields


@pytest.mark.whole
def test_each_term_of_the_glossary_is_in_the_module_that_it_names() -> None:
    rows = re.findall(r"^- \*\*(.+?)\*\*: .+ \(`([^`]+)`\)$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(rows) > 50
    assert len({term for term, _ in rows}) == len(rows), "a term stands twice"

    def plain(text: str) -> str:
        return re.sub(r"[-_\s]+", " ", text.lower())

    missing = [term for term, path in rows if plain(term) not in plain(path + " " + (ROOT / path).read_text())]
    assert missing == []
