"""The documentation says what is so: its snippets run, and its tables are whole."""

from __future__ import annotations

import configparser
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest

import monitor_plugin
from monitor_plugin import EventFigures, HookFigures, LoadedPlugin, Monitor, Settings
from monitor_plugin.api.errors import ERROR_KINDS, HTTP_ERROR_TYPES, INTERNAL_ERROR
from monitor_plugin.api.results import CheckItem, HooksAnswer
from monitor_plugin.api.schemas import (
    BackendItem,
    BackendMembersItem,
    EndItem,
    EventsAnswer,
    FitsAnswer,
    GpuItem,
    GpuModelItem,
    GpuNeedItem,
    GpuNodeItem,
    GpuPeakItem,
    GpuProcessItem,
    HistoryAnswer,
    HistoryItem,
    IdleModelItem,
    LastReadingItem,
    LogAnswer,
    Machine,
    MemberItem,
    MembersAnswer,
    MemoryNeedItem,
    ModelItem,
    NodeItem,
    PeaksAnswer,
    PeaksItem,
    PostMortemItem,
    ProcessItem,
    RefusedItem,
    ShutdownItem,
)
from monitor_plugin.cli import main
from monitor_plugin.cli.options import EXIT_CODES
from monitor_plugin.cli.program import program
from monitor_plugin.config.settings import setting_text
from monitor_plugin.config.tokens import Role, parse_tokens
from monitor_plugin.demo.calls import make_calls
from monitor_plugin.demo.host import MODELS, demo
from monitor_plugin.domain import protocols
from monitor_plugin.domain.address import parse_address
from monitor_plugin.domain.models import TreeUsage
from monitor_plugin.domain.protocols import parse_protocol_rule
from monitor_plugin.http.openapi import describe_api

from .support import Client, Spawner, await_memory, eventually, free_port

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The hook reference has its own tests, in test_hook_documents.py, and the tutorials in
# test_tutorials.py.
TESTED_ELSEWHERE = {DOCS / "reference" / "hooks.md", *(DOCS / "tutorials").glob("*.md")}
DOCUMENTS = [ROOT / "README.md", *sorted({*DOCS.rglob("*.md")} - TESTED_ELSEWHERE)]
RUN = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
SNIPPETS = [
    pytest.param(snippet, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, snippet in enumerate(RUN.findall(path.read_text()))
]


# Each document that people read, but for the changes, which repeat what was said elsewhere.
PROSE = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "hooks" / "README.md",
    ROOT / "benchmarks" / "README.md",
]


def text_of(name: str) -> str:
    """Return the text of a page, whose path is relative to docs/."""
    return (DOCS / f"{name}.md").read_text()


def block(marker: str) -> str:
    """Return the block that follows a marker; where several documents show it, they agree."""
    pattern = re.compile(rf"<!-- {marker} -->\n```\w+\n(.*?)```", re.DOTALL)
    (found,) = {each for path in DOCUMENTS for each in pattern.findall(path.read_text())}
    return str(found)


def test_every_python_snippet_is_marked_to_be_run() -> None:
    """No page has a Python snippet that no test runs."""
    for path in DOCUMENTS:
        text = path.read_text()
        assert len(RUN.findall(text)) == text.count("```python"), path


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_of_the_documents_run(snippet: str, spawner: Spawner) -> None:
    """Each Python snippet of the README and of docs/ runs without an error, with other ports."""
    snippet = snippet.replace("50051", str(free_port()))
    process = spawner.process(
        *(sys.executable, "-W", "error", "-c", snippet),
        stderr=subprocess.PIPE,
        env={"MONITOR_LISTEN": "127.0.0.1:0", "PATH": ""},
        cwd=ROOT,
    )
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def without_code(path: Path) -> str:
    """Return a document's text without its blocks of code and comments."""
    return re.sub(r"^```.*?^```|<!--.*?-->", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub and Sphinx give to the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
        found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


def test_every_link_between_documents_resolves() -> None:
    """Each relative link leads to a file of the repository, and each anchor to a heading."""
    broken = []
    for path in [*PROSE, ROOT / "CHANGELOG.md"]:
        text = without_code(path)
        links = re.findall(r"\]\(([^)\s]+)\)", text)
        in_html = re.findall(r'\b(?:src|srcset|href)="([^"]+)"', text)
        assert not (in_html and DOCS in path.parents), f"{path}: Sphinx does not see {in_html}"
        links += in_html
        for link in links:
            name, _, anchor = link.partition("#")
            if re.match(r"https?:", link):
                continue
            target = path.parent / name if name else path
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append((path.name, link))
    assert broken == []


def test_every_picture_is_shown() -> None:
    """Each picture that `make screenshots` takes is on a page."""
    text = "".join(path.read_text() for path in PROSE)
    assert [each.name for each in DOCS.glob("images/*") if f"images/{each.name})" not in text] == []


def sentences(path: Path) -> set[str]:
    """Return the sentences and the cells of tables of a document, without targets of links."""
    text = re.sub(r"\]\([^)]*\)", "]", without_code(path))
    paragraphs = re.split(r"\n\s*\n|^[-#] ?|\|", text, flags=re.MULTILINE)
    return {
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.:;]) ", " ".join(paragraph.split()))
    }


def test_no_sentence_is_written_twice() -> None:
    """No two documents share a sentence of over 60 characters."""
    seen: dict[str, str] = {}
    twice = []
    for path in PROSE:
        for sentence in sentences(path):
            if len(sentence) > 60 and sentence in seen:
                twice.append((seen[sentence], path.name, sentence))
            seen[sentence] = path.name
    assert twice == []


def test_python_api_page_has_every_public_name() -> None:
    """The page has each name of the package, and each module that others build on, whole."""
    page = text_of("reference/python-api")
    named = re.findall(r"^\.\. (?:auto)?(?:class|data|exception|function):: ([\w.]+)", page, re.M)
    documented = {name.rpartition(".")[2] for name in named}
    assert sorted(set(monitor_plugin.__all__) - documented) == []
    package = ROOT / "monitor_plugin"
    files = [package / f"{name}.py" for name in ("client", "hookimpls", "testing")]
    files += [path for path in package.glob("hook_support/*.py") if path.stem != "__init__"]
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert re.search(rf"^\.\. automodule:: {module}$", page, re.MULTILINE), module
        if path.stem != "hookimpls":  # its markers have their hooks' names
            # Sphinx shows a value only if a comment of this form describes it.
            undescribed = r"^(?!#:).*\n([A-Za-z]\w*) = (?!TypeVar)"
            assert re.findall(undescribed, path.read_text(), re.MULTILINE) == [], path


def without_machine(text: str) -> str:
    """Remove what `ps` and `status` say of limits of memory, and of its pressure."""
    text = re.sub(r"% of [^,]+ \(limit; the machine has [^)]*\)", "% of the machine's", text)
    text = re.sub(r" \(limit; the machine has [^)]*\)", "", text)
    return re.sub(r"^memory pressure .*\n", "", text, flags=re.MULTILINE)


def _shape(text: str) -> list[str]:
    """Lines without their figures, which differ each time, and without their padding."""
    text = without_machine(text)
    text = re.sub(r"\b\d+(\.\d+)? ([KMGT]i)?B\b", "SIZE", text)  # the unit may differ, too
    text = re.sub(r"\b(\d+[smhd])+\b", "T", text)
    return [" ".join(re.sub(r"\d+", "N", line).split()) for line in text.strip().split("\n")]


@pytest.mark.once
def test_readme_shows_the_output_of_the_demo() -> None:
    """Each call of the README is one of the demo, with the answer that it gets, in that order."""
    with demo(Settings(listen="127.0.0.1:0", status_timeout_seconds=30.0)) as monitor:
        printed = [_shape(text) for text, _ in make_calls(monitor.url, None)]
    shown = [_shape(text) for text in block("demo").split("\n\n")]
    assert shown == [each for each in printed if each in shown]


def test_readme_is_short_and_lists_all_extras() -> None:
    """It has under 150 lines, and its table has each extra of setup.cfg."""
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") < 150
    table = readme.partition("| extra | for |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", "".join(cells))) == sorted(_extras())


def test_documents_install_from_a_checkout() -> None:
    """While no version is published, each `pip install` is one that works in a checkout."""
    for path in PROSE:
        for arguments in re.findall(r"pip install ([^`\n]+)", without_messages(path)):
            if path.parent.name == "monitor-plugin-hello":  # it needs the monitor, and is no extra
                assert re.fullmatch(r"\.\./\.\. (\.|'\.\[test\]')", arguments), arguments
                continue
            assert re.fullmatch(r"\.|'\.\[[a-z,]+\]'", arguments), (path.name, arguments)
            assert {*re.findall(r"\w+", arguments)} <= {*_extras()}, (path.name, arguments)


def without_messages(path: Path) -> str:
    """Return a document's text without the blocks that quote messages of the program."""
    return re.sub(r"^ *```text\n.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def _extras() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return list(setup["options.extras_require"])


@pytest.mark.once
def test_documented_commands_print_what_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run against the demo, each command prints what the page shows, with other figures."""
    settings = Settings(listen="127.0.0.1:0", status_timeout_seconds=30.0, gpu="off")
    with demo(settings) as monitor:
        for model in MODELS:
            monitor.read(model)
        # A backend that was there for a moment alone has no figure for the CPU, and no PSS yet.
        eventually(
            lambda: all(
                each.process
                and each.process.cpu_percent is not None
                and each.tree
                and each.tree.pss
                for each in monitor.sweep()
            )
        )
        monkeypatch.setenv("MONITOR_URL", monitor.url)
        for part in block("commands").split("$ monitor-plugin ")[1:]:
            command, _, output = part.partition("\n")
            assert main(shlex.split(command)) == 0
            assert _shape(capsys.readouterr().out) == _shape(output)


def test_command_line_reference_has_all_commands_and_flags() -> None:
    """Each command has a section with its flags, but for settings; exit codes are the help's."""
    first, *parts = re.split(r"^## ", text_of("reference/command-line"), flags=re.MULTILINE)
    sections = {name: text for name, _, text in (part.partition("\n") for part in parts)}
    shared = sections["The monitor to ask"]
    settings = {f"--{name.replace('_', '-')}" for name in Settings.__struct_fields__}
    for name in program.list_commands(click.Context(program)):
        command = program.get_command(click.Context(program), name)
        assert command
        assert f"](#{name})" in first
        flags = {flag for each in command.params for flag in each.opts if flag.startswith("--")}
        asks = "--url" in flags
        assert (f"`{name}`" in shared) == asks
        flags -= {"--url", "--token-file"} if asks else settings
        assert set(re.findall(r"^\| `(--[a-z-]+)", sections[name], re.MULTILINE)) == flags, name
    assert set(re.findall(r"^\| `(--[a-z-]+)", shared, re.MULTILINE)) == {"--url", "--token-file"}
    assert block("exit codes").split() == EXIT_CODES.partition("\n")[2].split()


def test_shown_commands_have_their_flags() -> None:
    """Each `monitor-plugin` command of a document has only flags that the command takes."""
    context = click.Context(program)
    names = program.list_commands(context)
    shown = re.compile(rf"monitor-plugin ({'|'.join(names)})\b([^`\n]*)")
    wrong = []
    for path in PROSE:
        for name, rest in shown.findall(path.read_text()):
            command = program.get_command(context, name)
            assert command
            flags = {"--help", *(flag for each in command.params for flag in each.opts)}
            wrong += [
                (path.name, name, flag)
                for flag in re.findall(r" (--[\w-]+)", rest)
                if flag not in flags
            ]
    assert wrong == []


def test_shown_variables_are_read_by_the_code() -> None:
    """Each variable of a document is that of a setting, or occurs in the package."""
    code = "".join(path.read_text() for path in (ROOT / "monitor_plugin").rglob("*.py"))
    known = {*re.findall(r"MONITOR_[A-Z_]+", code)}
    known |= {f"MONITOR_{name.upper()}" for name in Settings.__struct_fields__}
    for path in PROSE:
        for variable in re.findall(r"\bMONITOR_[A-Z_]*[A-Z]\b", path.read_text()):
            of_a_hook = variable.startswith("MONITOR_HOOK_")  # test_shelf.py has those
            assert of_a_hook or variable in known, (path.name, variable)


@pytest.mark.parametrize(
    ("marker", "example"),
    [("nginx", "nginx/monitor.conf"), ("prometheus", "prometheus/prometheus.yml")],
)
def test_shown_configuration_is_that_of_the_example(marker: str, example: str) -> None:
    """The lines of the page are in the file of the examples, which a test runs."""
    assert block(marker) in (ROOT / "examples" / example).read_text()


@pytest.mark.parametrize(
    "page", sorted((DOCS / "how-to" / "servers").glob("*.md")), ids=lambda p: p.stem
)
def test_page_of_a_server_configures_a_backend(page: Path) -> None:
    """Each has six lines for supervisord, and names an address and a protocol that exist."""
    text = page.read_text()
    assert f"servers/{page.stem}.md" in text_of("how-to/servers")
    found = re.findall(r"<!-- server -->\n```ini\n(.*?)```", text, re.DOTALL)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(found[-1])
    (section,) = parser.sections()
    assert section.startswith("program:")
    assert found[-1].count("\n") == 6
    variables = dict(re.findall(r'(\w+)="([^"]*)"', parser[section]["environment"]))
    parse_address(variables["MONITOR_ADDRESS"])
    if "MONITOR_PROTOCOL" in variables:
        parse_protocol_rule(variables["MONITOR_PROTOCOL"])
    assert re.search(r"\*\*(Tried|Not tried:?)\*\*", text)


def test_shown_variables_are_valid_settings() -> None:
    """Each page that shows settings as variables shows settings that the monitor accepts."""
    text = text_of("how-to/cluster") + text_of("how-to/nginx")
    shown = re.findall(r"<!-- settings -->\n```ini\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 2
    for lines in shown:
        variables = dict(line.split("=", 1) for line in lines.splitlines())
        settings = Settings.from_environment(variables)
        for variable in variables:
            assert getattr(settings, variable.removeprefix("MONITOR_").lower())


def test_circus_lines_are_those_of_the_example() -> None:
    """The four documented lines are in the example's circus.ini, which a test runs."""
    lines = block("circus")
    assert lines.count("\n") == 4
    assert f"\n{lines}\n" in (ROOT / "examples" / "circus" / "circus.ini").read_text()


def test_settings_reference_has_all_settings() -> None:
    """Each setting is in the table once, with its default."""
    text = text_of("reference/settings")
    for field in msgspec.structs.fields(Settings):
        shown = {None: "unset", (): "none", False: "no"}.get(
            field.default, setting_text(field.name, field.default)
        )
        row = rf"^\| `{field.name}` \| `?{re.escape(shown)}`? \|"
        assert len(re.findall(row, text, re.MULTILINE)) == 1, field.name


def test_security_page_has_all_settings_but_timeouts() -> None:
    """The page on security says of each setting, except for the timeouts, what it allows."""
    text = text_of("explanation/security").partition("## What each setting opens")[2]
    for field in msgspec.structs.fields(Settings):
        assert field.name.endswith("_seconds") or f"`{field.name}`" in text, field.name


def test_documented_token_file_is_valid() -> None:
    """The documented token file can be parsed."""
    tokens = parse_tokens(block("tokens"))
    assert [(token.role, token.name) for token in tokens] == [
        (Role.READ, "grafana"),
        (Role.ADMIN, "ops"),
    ]


def test_supervisord_section_is_that_of_the_example() -> None:
    """The documented section is exactly that of the example."""
    section = block("supervisord")
    assert section.count("\n") == 6
    assert section in (ROOT / "examples/supervisord/supervisord.conf").read_text()


def test_documented_audit_line_has_the_real_fields(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """The documented audit line has the fields of a real shutdown's line."""
    shown = json.loads(block("audit"))
    caplog.set_level(logging.INFO, "monitor_plugin.audit")
    monitor = make_monitor()
    process = spawner.sleeper()
    await_memory(process.pid)
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    assert Client(monitor.url).shutdown("m").status == 200
    audit = "monitor_plugin.audit"
    (record,) = eventually(lambda: [each for each in caplog.records if each.name == audit])
    line = json.loads(record.getMessage())
    assert {name: type(value) for name, value in line.items()} == {
        name: type(value) for name, value in shown.items()
    }


def test_http_reference_has_all_errors() -> None:
    """The table has the status and the type of each error that the application returns."""
    kinds = {(kind.status, kind.type) for kind in [*ERROR_KINDS.values(), INTERNAL_ERROR]}
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", text_of("reference/http"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {(int(status), type) for status, type in rows} == kinds | set(HTTP_ERROR_TYPES.items())


def test_http_reference_has_all_routes() -> None:
    """The table has each route of `/openapi.json`, with its methods, but for those under /v1."""
    paths = json.loads(describe_api(token_required=True, clustered=True))["paths"]
    routes = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if not path.startswith("/v1/")
    }
    table = text_of("reference/http").partition("| route |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`((?:GET|POST) \S+)`", table)) == routes
    assert sum(path.startswith("/v1/") for path in paths) == 5


@pytest.mark.parametrize(
    ("page", "heading", "structs"),
    [
        ("http", "List backends", [BackendItem, ProcessItem, TreeUsage, EndItem, ShutdownItem]),
        ("http", "List members", [MembersAnswer, BackendMembersItem, MemberItem]),
        ("http", "List backends", [Machine, ModelItem, RefusedItem]),
        ("http", "Read a log", [LogAnswer]),
        ("http", "Why a backend ended", [PostMortemItem, LastReadingItem]),
        ("http", "List GPUs", [GpuItem, GpuModelItem, GpuProcessItem]),
        ("http", "Follow events", [EventsAnswer]),
        ("http", "CPU and memory of the last minutes", [HistoryAnswer, HistoryItem]),
        ("http", "Peaks of models", [PeaksAnswer, PeaksItem, GpuPeakItem]),
        ("http", "Does it fit?", [FitsAnswer, MemoryNeedItem, GpuNeedItem, IdleModelItem]),
        ("http", "Plugins", [HooksAnswer, LoadedPlugin, HookFigures, EventFigures]),
        ("http", "What is missing here", [CheckItem]),
        ("cluster", "What any node answers", [NodeItem, GpuNodeItem]),
    ],
)
def test_reference_has_all_fields_of_answers(page: str, heading: str, structs: list[type]) -> None:
    """The section about a route has each field of its answer."""
    section = text_of(f"reference/{page}").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for struct in structs:
        for field in msgspec.structs.fields(struct):
            assert re.search(rf"[`\".]{field.name}[`\"]", section), field.name


def test_reference_has_all_headers() -> None:
    """Each header of the monitor's own is on the page of HTTP or of the cluster."""
    sources = "".join(path.read_text() for path in (ROOT / "monitor_plugin").rglob("*.py"))
    headers = set(re.findall(r"X-Monitor-[A-Za-z-]+", sources))
    assert len(headers) >= 6
    documents = text_of("reference/http") + text_of("reference/cluster")
    assert {header for header in headers if f"| `{header}` |" not in documents} == set()


def test_protocol_reference_has_all_protocols_and_metrics() -> None:
    """In the order in which servers are tried; with each metric and route that the code names."""
    text = (DOCS / "reference" / "status-protocols.md").read_text()
    names = (*protocols.HTTP_PROTOCOLS, *protocols.GRPC_PROTOCOLS[1:])
    headings = tuple(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert headings == ("How servers are asked", "Failures", *names)
    package = Path(monitor_plugin.__file__).parent / "status_protocols"
    for path in package.glob("*.py"):
        code = path.read_text()
        metrics = re.findall(r'"((?:llamacpp|vllm|sglang):\w+|tgi_\w+)"', code)
        routes = re.findall(r'"(/[a-z]\w*(?:/\w+)*)"', code)
        missing = [n for n in (*metrics, *routes) if f"{n}`" not in text and f"{n}{{" not in text]
        assert missing == [], path


def test_architecture_lists_all_packages() -> None:
    """The table of ARCHITECTURE.md names each package and each module of the root, and no other."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    package = ROOT / "monitor_plugin"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `([a-z_./]+)` ", text, re.MULTILINE)) == folders | modules | {
        "moved/"
    }


def test_architecture_diagrams_name_classes_of_the_code() -> None:
    """Each participant of the two sequence diagrams, but the client, is a class of the package."""
    diagrams = re.findall(r"```text\n(client.*?)\n", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(diagrams) == 2
    code = "".join(path.read_text() for path in (ROOT / "monitor_plugin").rglob("*.py"))
    for participant in {*" ".join(diagrams).split()} - {"client"}:
        assert re.search(rf"^class {participant}\b", code, re.MULTILINE), participant
