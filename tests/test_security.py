"""What no line of the code may do: run what it reads, or ask the wall clock how long it took."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("dist_train", "model", "memory_index", "launch", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
UNPICKLING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "pd.read_pickle",
    "pandas.read_pickle", "cloudpickle.load", "cloudpickle.loads", "torch.jit.load",
}  # fmt: skip
RUNNING = {"eval", "exec", "compile", "os.system", "os.popen", "runpy.run_path", "__import__"}
YAML_SAFE = {"safe_load", "safe_load_all", "safe_dump", "dump", "compose", "parse"}
# Seconds since 1970 tell when something was, and only where another process has to know it.
# (watchdog: the last of three hints about which of two late ranks of different machines is later.)
MAY_ASK_THE_WALL_CLOCK = {
    "launch/doctor/clocks.py",  # compares the wall clocks of two nodes
    "dist_train/train.py", "dist_train/outcome.py", "dist_train/watchdog.py",
}  # fmt: skip
WALL_CLOCK = {"time.time", "time.time_ns", "time.localtime", "datetime.now", "datetime.utcnow"}


def dotted(node: ast.expr) -> str:
    """The name that an expression spells, such as ``torch.load``; empty for others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def faults(source: str, file: str = "") -> list[str]:
    """What a file does that it may not, a line for each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        unpickles = (
            name in UNPICKLING
            or (name == "torch.load" and not is_constant(options.get("weights_only"), True))
            or (name in ("np.load", "numpy.load") and "allow_pickle" in options)
        )
        yaml_name = name.removeprefix("yaml.") if name.startswith("yaml.") else ""
        loads_objects = bool(yaml_name) and yaml_name not in YAML_SAFE
        if "Loader" in options and dotted(options["Loader"]) != "yaml.SafeLoader":
            loads_objects = True
        foreign = options.get("trust_remote_code")
        asks = name in WALL_CLOCK and file not in MAY_ASK_THE_WALL_CLOCK
        # A time stamp with its zone is for people to read.
        if name == "datetime.now" and node.args and dotted(node.args[0]) == "UTC":
            asks = False
        for wrong, what in (
            (unpickles, "unpickles"),
            (loads_objects, "loads YAML objects"),
            (name in RUNNING, "runs text"),
            ("shell" in options and not is_constant(options["shell"], False), "starts a shell"),
            (foreign is not None and not is_constant(foreign, False), "trusts remote code"),
            (asks, "asks the wall clock"),
        ):
            if wrong:
                found.append(f"{file}:{node.lineno}: {name} {what}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_read_is_run(path: Path):
    assert faults(path.read_text(), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)", "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)", "yaml.load(text, Loader=yaml.FullLoader)", "yaml.unsafe_load(text)",
        "yaml.compose(text, Loader=yaml.Loader)", "eval(text)", "exec(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "AutoModel.from_pretrained(a, trust_remote_code=True)",
        "AutoModel.from_pretrained(a, trust_remote_code=flag)", "time.time()", "datetime.now()",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(line: str):
    assert len(faults(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)", "yaml.safe_load(text)", "model.eval()",
        "yaml.compose(text, Loader=yaml.SafeLoader)", "time.monotonic()", "datetime.now(UTC)",
        "subprocess.run(command)",
    ],
)  # fmt: skip
def test_the_rule_lets_pass_what_is_safe(line: str):
    assert faults(line) == []


def test_every_load_of_transformers_says_that_no_foreign_code_runs():
    loads = 0
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "benchmarks":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and dotted(node.func).endswith(".from_pretrained"):
                spread = {dotted(word.value) for word in node.keywords if word.arg is None}
                named = {word.arg for word in node.keywords}
                loads += 1
                assert "_NO_FOREIGN_CODE" in spread or "trust_remote_code" in named, (
                    f"{path}:{node.lineno}"
                )
    assert loads >= 4


def test_no_archive_decides_where_its_files_go():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("extractall", "unpack_archive"), f"{path}:{node.lineno}"
