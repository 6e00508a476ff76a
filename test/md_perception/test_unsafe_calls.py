"""No file and no text from outside is ever run as a program: the calls that could are in neither package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("md_perception/**/*.py"), *ROOT.glob("md_training/**/*.py"), *ROOT.glob("launch/*.py")])

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("os.system", "os.popen", "tempfile.mktemp"),
    *("xml.etree.ElementTree.parse", "ElementTree.parse"),
}


def unsafe_calls(source: str) -> list[str]:
    """Return the calls of a module that run, or may run, what they are given."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            name in FORBIDDEN
            or options.get("shell", "False") != "False"
            or (name == "YAML" and options.get("typ") != "'safe'")
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
        ):
            found.append(f"line {call.lineno}: {ast.unparse(call)[:100]}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path: Path) -> None:
    assert unsafe_calls(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.load(p)", 1),
        ("torch.load(p, weights_only=False)", 1),
        ("torch.load(p, weights_only=True)", 0),
        ("np.load(p, allow_pickle=True)", 1),
        ("np.load(p)", 0),
        ("subprocess.run(c, shell=True)", 1),
        ("subprocess.run(c)", 0),
        ("yaml.load(t, Loader)", 1),
        ("yaml.safe_load(t)", 0),
        ("YAML().load(t)", 1),
        ("YAML(typ='unsafe').load(t)", 1),
        ("YAML(typ='safe').load(t)", 0),
        ("network.eval()", 0),
        ("eval(t)", 1),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, count: int) -> None:
    assert len(unsafe_calls(source)) == count
