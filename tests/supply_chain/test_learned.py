"""Data from other projects: key formats, words, triples of letters, licences."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headrace.policy.text.letter_triples import LETTERS, SHAPES
from headrace.policy.text.patterns import BadPattern
from supply_chain import letter_triples, licences, secret_words, vendor_keys, vendored
from tests.refusals import Naming

END = r"""(?:[\x60'"\s;]|\\[nr]|$)"""
NAMED = (
    r"""(?i)[\w.-]{0,50}?(?:acme|(?-i:Ac))(?:[ \t\w.-]{0,20})[\s'"]{0,3}(?:=|>|:{1,3}=|\|\||:|=>|\?=|,)"""
    r"""[\x60'"\s=]{0,5}([a-z0-9]{32})"""
) + END


@pytest.mark.parametrize(
    ("expression", "ours"),
    [
        (rf"\b(AB[A-Z0-9]{{20}}){END}", "(AB[A-Z0-9]{20,})"),
        (rf"\b(AB[A-Z0-9]{{50}}){END}", "(AB[A-Z0-9]{40,})"),
        (r"a{45}b{10,60}c{3}", "a{40,}b{10,}c{3,}"),
        (r"a{2,40}b{41}c", "a{2,40}b{40,}c"),
        (r"(?i)ab{3}", "(?i:ab{3,})"),
        (r"(a(?i)b\)c)d{2}", r"(a(?i:b\)c))d{2,}"),
        (r"[[:alnum:]]{4}", "[A-Za-z0-9]{4,}"),
    ],
)
def test_a_key_format_is_written_in_our_dialect(expression: str, ours: str) -> None:
    assert vendor_keys.written(expression) == ours


def test_rules_identify_a_vendor_or_need_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    rules: list[dict[str, Any]] = [
        {"id": "jwt", "regex": "ey[a-z]{9}"},
        {"id": "plain", "regex": "AB[0-9]{9}"},
        {"id": "named", "regex": NAMED},
        {"id": "both", "regex": NAMED + r"|XY[0-9]{8}"},
        {"id": "ahead", "regex": "(?=a)b"},
        {"id": "wide", "regex": r"(?i)[\w.-]{9}x"},
    ]
    alone, named = vendor_keys.taken(rules)
    assert alone == {"plain": "AB[0-9]{9,}", "both": "XY[0-9]{8,}"}
    assert named == {name: ["acme|(?:Ac)", "(?i:[a-z0-9]{32,})"] for name in ("named", "both")}
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("left out: ahead: ")
    assert told[1] == "left out: wide"
    with pytest.raises(BadPattern):
        vendor_keys.written("(?=a)b")


def test_triples_have_the_bits_of_their_share() -> None:
    assert letter_triples.surprises({"aab": 1.0}, "ab") == ["21", "11", "21", "11"]
    assert letter_triples.surprises({"aab": 1e6}, "ab")[0] == "f0"
    assert letter_triples.lines_of(Counter({"ab": 3})) == [
        *letter_triples.surprises({"__ab_": 2.0}, LETTERS),
        *letter_triples.surprises({"__aa_": 2.0}, SHAPES),
    ]


def test_words_are_those_of_texts_that_are_not_installed(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "a.py").write_text(f"alpha beta_gamma a {'x' * 40} {'y' * 41} alpha")
    (tmp_path / "b.bin").write_text("binary")
    (tmp_path / "site-packages" / "c.py").write_text("installed")
    assert letter_triples.words([tmp_path]) == Counter({"alpha": 2, "beta_gamma": 1, "x" * 40: 1})


PO = """
msgid "Password"
msgstr "Vrelmot: "

#, fuzzy
msgid "Password"
msgstr "Fuzzelmot"

msgid "Name"
msgstr "Namelmot"

msgid "Passphrase"
msgstr "Vrelmot neu"

msgid "password"
msgstr "abc"

msgid "passphrase"
msgstr "with {sign}"
"""


def test_labels_of_translations_and_lists_are_learned(tmp_path: Path) -> None:
    folder, listed = tmp_path / "po", tmp_path / "labels.txt"
    folder.mkdir()
    (folder / "xx.po").write_text(PO)
    listed.write_text(f"[held_password]\n# note\nListelmot\nsandi\n{'z' * 41}\n[held_key]\nQrstelmot\n")
    assert secret_words.words([folder, listed], "password", frozenset(["abc known"])) == [
        "abc known",
        "listelmot",
        "vrelmot",
    ]
    assert secret_words.words([folder, listed], "key", frozenset()) == ["qrstelmot"]


def test_the_list_of_licences_is_written_and_the_first_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(licences, "LIST", tmp_path / "licences.md")
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps([{"Name": "Six", "License": "Apache Software License"}]))
    found = [{"Name": name, "License": "MIT License"} for name in licences.locked()]
    second.write_text(json.dumps(found))
    assert licences.main(["write", str(first), str(second)]) == 0
    listed = licences.read_list(licences.LIST.read_text())
    assert [listed[name][1] for name in ("six", "accelerate", "colorama")] == ["Apache-2.0", "MIT", "BSD-3-Clause"]
    assert licences.main(["check"]) == 0
    licences.LIST.write_text(licences.LIST.read_text().replace("Libraries of the console", "Libraries"))
    assert licences.main(["check"]) == 1
    assert capsys.readouterr().err == Naming("docs/licences.md: ", "console", "`make licences`")
    second.write_text(json.dumps([one | {"License": "UNKNOWN"} for one in found]))
    assert licences.main(["write", str(second)]) == 1
    assert "accelerate" in capsys.readouterr().err


def test_a_changed_library_of_the_console_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(vendored.complaints(vendored.section())) == []
    for file in vendored.VENDORED:
        (tmp_path / file.name).write_bytes(b"changed")
    monkeypatch.setattr(vendored, "FOLDER", tmp_path)
    assert list(vendored.complaints(vendored.section())) == [
        Naming("htm-preact.js", "htm 3.1.1"),
        Naming("uplot.js", "uplot 1.6.32"),
        Naming("uplot.css", "uplot 1.6.32"),
    ]
