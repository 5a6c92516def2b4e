"""No product code unpickles, evaluates, runs a shell, or loads code from a model.

Ruff's rules (S, and banned APIs) check most of this in `make check`; this test cannot be silenced by a comment.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = (
    "cli",
    "features",
    "headrace",
    "migrations",
    "models",
    "policy",
    "producer_api",
    "prompts",
    "store",
    "supply_chain",
    "workers",
)
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))

UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
EVALUATING = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "torch.hub.load", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
SHELLS = {"subprocess.getoutput", "subprocess.getstatusoutput"}
PICKLING_ARRAYS = {"np.load", "numpy.load"}


def _name(node: ast.expr) -> str:
    """Return the dotted name in the source."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def _options(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: word.value.value if isinstance(word.value, ast.Constant) else "?" for word in call.keywords}


def _of_a_call(call: ast.Call) -> Iterator[str]:
    name, options = _name(call.func), _options(call)
    if name in EVALUATING | CALLS | SHELLS | PICKLING_ARRAYS:
        yield f"calls {name}"
    if options.get("shell", False) is not False:
        yield "asks a shell"
    if options.get("trust_remote_code", False) is not False:
        yield "trusts remote code"
    if name.endswith(".from_pretrained") and "trust_remote_code" not in options:
        yield "does not say whether it trusts remote code"


def dangers(source: str) -> list[str]:
    """Return forbidden calls of a module, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        said = [f"imports {name}" for name in _imports(node) & UNPICKLING]
        said += _of_a_call(node) if isinstance(node, ast.Call) else []
        found += [f"{getattr(node, 'lineno', 0)}: {words}" for words in said]
    return found


def test_none_of_ours_does() -> None:
    assert len(FILES) > 200
    found = {str(path.relative_to(ROOT)): said for path in FILES if (said := dangers(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "subprocess.Popen(command, shell=flag)",
        "os.system(command)",
        "numpy.load(path)",
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "AutoModel.from_config(config, trust_remote_code=flag)",
    ],
)
def test_each_of_them_is_found(source: str) -> None:
    assert len(dangers(source)) == 1
