"""What the pages say exists: links, public names, commands and flags, environment variables, messages, figures."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import hmsa_ext
from bench import memory, memory_methods, memory_table, training_cost
from bench import table as bench_table
from hmsa_ext import __main__ as program
from hmsa_ext.autolabel import __main__ as autolabel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "bench/**/*.md", "csrc/**/*.md", "python_tests/*.md")
    for page in ROOT.glob(pattern)
)
BENCHMARKS = DOCS / "benchmarks.md"
RESULTS = ROOT / "bench" / "results"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- links ------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


def test_every_page_is_in_the_index() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", text_of(DOCS / "README.md"))
    found = {(DOCS / link).resolve() for link in linked}
    assert {page.resolve() for page in DOCS.glob("*.md")} - found == {(DOCS / "README.md").resolve()}


# ---- public names -----------------------------------------------------------------------------------------------

MODULES = ("hmsa_ext", "hmsa_ext.ops", "hmsa_ext.models", "hmsa_ext.losses", "hmsa_ext.data", "hmsa_ext.prediction")


def documented(module: str) -> dict[str, str]:
    """Names in the section of a module, each with the file that it is said to be in."""
    (section,) = re.findall(rf"^## {re.escape(module)}\n(.*?)(?=^## |\Z)", text_of(DOCS / "api.md"), re.M | re.S)
    return dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^`]+)` \|$", section, re.M))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_stands_in_the_reference(module: str) -> None:
    assert set(importlib.import_module(module).__all__) - documented(module).keys() == set()


@pytest.mark.parametrize("module", MODULES)
def test_what_the_reference_names_exists_where_it_says(module: str) -> None:
    package = importlib.import_module(module)
    for name, file in documented(module).items():
        assert name in package.__all__, f"{module}.{name} is not public"
        assert (ROOT / file).exists(), f"{module}.{name}: {file}"
        if file.endswith(".py"):
            assert re.search(rf"\b{name}\b", text_of(ROOT / file)), f"{module}.{name} is not in {file}"


def test_modules_and_names_of_the_engine_exist() -> None:
    names = re.findall(r"^\| `(hmsa_ext\.[\w.]+)` \|", text_of(DOCS / "api.md"), re.M)
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


# ---- commands ---------------------------------------------------------------------------------------------------


def command_lines(page: Path) -> Iterator[list[str]]:
    """The commands in the bash blocks of a page, word by word."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def arguments_of(words: list[str]) -> list[str] | None:
    """What comes behind ``hmsa`` in a command, however it is spelt; None for other commands."""
    if words[:1] == ["hmsa"]:
        return words[1:]
    for place, word in enumerate(words[:-1]):
        if word == "-m" and words[place + 1].partition(".")[0] == "hmsa_ext":
            command = words[place + 1].split(".")[1:]
            return [*command, *words[place + 2 :]]
    return None


@functools.cache
def help_of(command: tuple[str, ...], data: str | None) -> str:
    """The help text of a command, for a data set."""
    given = ["--data", data] if data else []
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        program.main([*command, *given, "--help"])
    return written.getvalue()


def assert_understood(arguments: list[str], where: str) -> None:
    known = {("train",), ("evaluate",), ("predict",), ("info",), ("data", "scan"), ("data", "stats"), ("autolabel",)}
    known |= {("autolabel", name) for name in autolabel.COMMANDS}
    command = tuple(arguments[:2]) if tuple(arguments[:2]) in known else tuple(arguments[:1])
    if command in ((), ("--help",), ("--version",)):
        return
    assert command in known, f"{where}: hmsa {' '.join(arguments)}"
    data = arguments[arguments.index("--data") + 1] if "--data" in arguments else None
    text = help_of(command, data)
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"{where}: hmsa {' '.join(command)} has no {flag}"


@pytest.fixture
def wide_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.mark.usefixtures("wide_help")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_flags_exist(page: Path) -> None:
    for words in command_lines(page):
        arguments = arguments_of(words)
        if any(word.startswith("my_parts:") for word in words):
            continue  # parts of the reader's own: test_extending.py runs such commands
        if arguments is not None:
            assert_understood(arguments, name_of(page))
        elif words[:1] == ["bash"]:
            assert (ROOT / words[1]).exists(), words
        elif words[:2] in (["python", "-m"], ["python3", "-m"]) and words[2].startswith("bench"):
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists(), words


@pytest.mark.usefixtures("wide_help")
def test_renamed_options_of_the_changelog_exist() -> None:
    rows = re.findall(r"^\| `([\w ]+)` \| `(--[^`]+)` \| `(--[^`]+)` \|$", text_of(ROOT / "CHANGELOG.md"), re.M)
    assert rows
    for command, _, new in rows:
        flag = new.split()[0]
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", help_of(tuple(command.split()), "folder")), (command, new)


@pytest.mark.usefixtures("wide_help")
def test_the_reference_names_every_command() -> None:
    named = set(re.findall(r"^\| `hmsa (\w+)", text_of(DOCS / "api.md"), re.M))
    assert named == set(program.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_and_python_blocks_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


def test_the_recipe_of_camvid_is_read() -> None:
    from hmsa_ext.engine.settings import TrainSettings, read_file

    train = TrainSettings.read(read_file(DOCS / "camvid" / "recipe.yaml", "config"))
    assert train.crops.crop == (192, 256)
    assert train.optimisation.iterations == 1300


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == hmsa_ext.__version__


def test_the_page_on_predictions_names_every_kind_of_file() -> None:
    from hmsa_ext.prediction.outputs import ENDINGS

    rows = re.findall(r"^\| `(\w+)` \| `NAME([^`]+)` \|", text_of(DOCS / "predict.md"), re.M)
    assert dict(rows) == ENDINGS


def test_pictures_of_predictions_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (DOCS / "predict").iterdir()}
    assert sizes
    assert max(sizes.values()) < 200_000, sizes


# ---- environment variables, messages ----------------------------------------------------------------------------

READ = (
    r"environ(?:\.get\(|\[)\s*\"(HMSA_\w+)\"",
    r"getenv\(\"(HMSA_\w+)\"",
    r"hmsa_setting\((HMSA_\w+) ",
    r"\$\{(HMSA_\w+):-",
)


def sources(*patterns: str) -> Iterator[Path]:
    for folder in ("hmsa_ext", "csrc", "cmake", "bench", "python_tests", "_build_backend", ".ci"):
        for pattern in patterns:
            yield from (ROOT / folder).rglob(pattern)
    yield from (ROOT / name for name in ("setup.py", "CMakeLists.txt"))


def test_every_environment_variable_is_listed() -> None:
    read = set()
    for path in {*sources("*.py", "*.cpp", "*.h", "*.cmake", "*.sh", "run")}:
        for pattern in READ:
            read |= set(re.findall(pattern, text_of(path)))
    read.discard("HMSA_")
    listed = set(re.findall(r"^\| `(HMSA_\w+)` \|", text_of(DOCS / "development.md"), re.M))
    assert read, "the patterns find nothing"
    assert listed == read


def texts_of(path: Path) -> Iterator[str]:
    """The texts in a source file; of f-strings each constant part."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    else:
        yield from re.findall(r"\"((?:[^\"\\\n]|\\.)*)\"", text_of(path))


def test_messages_of_the_troubleshooting_page_are_those_of_the_sources() -> None:
    paths = [*(ROOT / "hmsa_ext").rglob("*.py"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]
    paths += [*(ROOT / "cmake").glob("*"), *(ROOT / "csrc" / "ops").rglob("*.cpp")]
    corpus = "\0".join(text for path in paths for text in texts_of(path))
    messages = blocks(DOCS / "troubleshooting.md", "text")
    assert len(messages) > 15
    for message in messages:
        for part in message.strip().split("..."):
            part = part.strip()
            assert part in corpus, f"no message has {part!r}"


# ---- figures ----------------------------------------------------------------------------------------------------


def rows_of(page: Path) -> list[list[str]]:
    lines = [line for line in text_of(page).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def printed(name: str) -> list[list[str]]:
    """The rows that ``python -m bench.table`` prints for a file of results."""
    report = json.loads(text_of(RESULTS / name))
    lines = [line for line in bench_table.tables(report, "cpu") if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_figures_of_the_ops_are_those_of_the_result_file() -> None:
    rows = [row for row in rows_of(BENCHMARKS) if len(row) == 7]
    everything = printed("2026-12-01-epyc-2-threads-ops.json")
    ops = [row[:7] for row in everything if len(row) == 8 and row[0].startswith("`")]
    assert sorted(ops) == sorted(row for row in rows if row[4])
    assert len(rows) == len(ops) + 5 > 60
    sampling = ["\0".join(row) for row in everything if row[:7] not in ops]
    for what, _, ms, *_ in (row for row in rows if not row[4]):
        assert any(f"\0{ms}\0" in f"{row}\0" for row in sampling), (what, ms)


def test_figures_of_the_readme_are_rows_of_the_benchmarks_page() -> None:
    everything = {(row[0], row[1]): row for row in rows_of(BENCHMARKS) if len(row) == 7}
    rows = [row for row in rows_of(ROOT / "README.md") if len(row) == 7]
    assert len(rows) == 4
    for what, ours, eager, compiled, times, peak, eager_peak in rows:
        other = "published, eager" if what.startswith("`rmi") else "PyTorch eager"
        own, plain = everything[what, "**hmsa_ext**"], everything[what, other]
        assert (ours, peak) == (f"**{own[2]}**", own[5])
        assert (eager, times, eager_peak) == (plain[2], plain[3], plain[5])
        assert compiled == (everything[what, "torch.compile"][2] if compiled else "")


def test_figures_of_the_main_job_are_those_of_their_files() -> None:
    (section,) = re.findall(r"^## Main job\n(.*)", text_of(BENCHMARKS), re.M | re.S)
    rows = [row for row in re.findall(r"^\|(.*)\|$", section, re.M) if "](" in row]
    assert rows
    for row in rows:
        _, seed, *figures, link = (cell.strip() for cell in row.split("|"))
        results = json.loads(text_of(DOCS / link.partition("](")[2].rstrip(")")))
        assert results["config"]["seed"] == int(seed)
        ways = ("0.5", "1.0", "2.0", "mean", "attention")
        assert figures == [f"{100 * results['miou'][way]:.1f}" for way in ways]


def costs_of_the_methods() -> tuple[list[list[str]], str]:
    """The rows of their tables, and the name of the file that these are from."""
    (section,) = re.findall(r"^## What each method costs\n(.*?)(?=^## |\Z)", text_of(DOCS / "results.md"), re.M | re.S)
    (name,) = set(re.findall(r"`([\w-]+\.json)`", section))
    return [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\|(.*)\|$", section, re.M)], name


def test_costs_of_the_methods_are_those_of_their_file() -> None:
    rows, name = costs_of_the_methods()
    assert rows == printed(name)
    assert [row[0] for row in rows if row[1] == "trained at"] == [f"`{name}`" for name in training_cost.NETWORKS]


@pytest.mark.slow
@pytest.mark.parametrize("network", training_cost.NETWORKS)
def test_costs_of_the_methods_are_those_of_today(network: str) -> None:
    _, name = costs_of_the_methods()
    (test,) = (test for test in json.loads(text_of(RESULTS / name))["benchmarks"] if test["case"]["network"] == network)
    for method, written in test["results"].items():
        counted = training_cost.count(network, training_cost.METHODS[method])
        assert counted == {key: written[key] for key in counted}, method


BY_ALLOCATOR = "memory that was freed"
"""The first cell of a table."""


def rows_of_memory() -> list[dict]:
    """The rows of the file that the page on memory names."""
    (name,) = set(re.findall(r"`([\w-]+-memory\.json)`", text_of(DOCS / "memory.md")))
    return json.loads(text_of(RESULTS / name))["rows"]


def test_tables_of_the_memory_page_are_those_of_their_file() -> None:
    page, entries = text_of(DOCS / "memory.md"), rows_of_memory()
    assert memory_table.updated(page, entries) == page
    heads = re.findall(r"^\| ([^|]+?) \|[^\n]*\n\| ---", page, re.M)
    known = {table[0][0] for table in memory_table.tables(entries)}
    assert set(heads) - {BY_ALLOCATOR} <= known, "a table that the command does not print"
    assert len(heads) == len(set(heads)) >= 8
    assert memory_table.updated(text_of(ROOT / "README.md"), entries) == text_of(ROOT / "README.md")


def test_resident_memory_by_allocator_is_that_of_its_files() -> None:
    table = re.findall(rf"^\| (?:{BY_ALLOCATOR}|glibc|tcmalloc)[^\n]*$", text_of(DOCS / "memory.md"), re.M)
    cells = [tuple(int(cell) for cell in row.strip("| ").split(" | ")[1:]) for row in table[1:]]
    job, w48 = (
        json.loads(text_of(RESULTS / f"2026-11-30-epyc-1-thread-resident-{name}.json"))["samples"]
        for name in ("main-job", "w48")
    )

    def millions(size: int) -> int:
        return round(size / 1e6)

    assert cells == [
        (
            millions(first["resident"]), millions(last["resident"]), millions(last["peak"]), round(last["cpu_seconds"]),
            millions(w48[way][-1]["peak"]), round(w48[way][-1]["cpu_seconds"]),
        )
        for way, (first, *_, last) in job.items()
    ]  # fmt: skip
    assert [(first["step"], last["step"]) for first, *_, last in job.values()] == 3 * [(10, 1300)]


@pytest.mark.usefixtures("wide_help")
def test_flags_on_the_memory_page_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        memory.main(["--help"])
    texts = [capsys.readouterr().out, *(help_of((name,), None) for name in ("train", "evaluate", "predict", "info"))]
    flags = set(re.findall(r"`(--[\w-]+)[ `]", text_of(DOCS / "memory.md")))
    assert flags
    for flag in flags:
        assert any(re.search(rf"(?<![\w-]){flag}(?![\w-])", text) for text in texts), flag


@pytest.mark.slow
@pytest.mark.parametrize("job", memory_methods.METHODS)
def test_counts_of_memory_are_those_of_today(job: str) -> None:
    for entry in rows_of_memory():
        row = memory_methods.Row.from_json(entry)
        chosen = row.job == job and row.size == memory_methods.SIZES[0] and row.dtype == "float32"
        if chosen and row.network == memory_methods.NETWORKS[-1] and row.how.budget is None:
            assert memory_methods.count(row)["live_peak_bytes"] == entry["counted"]["live_peak_bytes"], row.name


def test_every_file_of_results_is_in_both_indices() -> None:
    for index in (BENCHMARKS, RESULTS / "README.md"):
        for file in RESULTS.glob("*.json"):
            assert f"`{file.name}`" in text_of(index), f"{name_of(index)}: {file.name}"
