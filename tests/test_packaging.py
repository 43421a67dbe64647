"""What is shipped: the wheel, the source distribution, and the workflow that publishes both."""

from __future__ import annotations

import configparser
import email
import email.message
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
IN_GIT = (ROOT / ".git").exists()
WORKFLOWS = ROOT / ".github" / "workflows"


class Built(NamedTuple):
    """What `python -m build` makes of the repository.

    Attributes:
        files: the files of the repository.
        wheel, sdist: the paths of the wheel and of the source distribution.
        log: the output of the build.
    """

    files: set[str]
    wheel: Path
    sdist: Path
    log: str

    def wheel_names(self) -> set[str]:
        return set(zipfile.ZipFile(self.wheel).namelist())

    def metadata(self) -> email.message.Message:
        with zipfile.ZipFile(self.wheel) as wheel:
            (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
            return email.message_from_string(wheel.read(name).decode())


def repository_files() -> set[str]:
    """List the files that git has or would take; all files where there is no git."""
    if not IN_GIT:
        paths = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return {str(path.relative_to(ROOT)) for path in paths}
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(command, cwd=ROOT, text=True, timeout=60).split("\0")
    return {name for name in names if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds the source distribution, and the wheel from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = repository_files()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    run = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(files, wheel, sdist, run.stdout)


def test_wheel_has_the_package_alone(built: Built) -> None:
    """The wheel has `monitor_plugin` with its data, and nothing of hooks, proto or tests."""
    names = built.wheel_names()
    package = {name for name in names if ".dist-info/" not in name}
    assert package == {name for name in built.files if name.startswith("monitor_plugin/")}
    assert [name for name in names if name.endswith("/LICENSE")]


@pytest.mark.skipif(not IN_GIT, reason="git tells which files belong to the repository")
def test_source_distribution_has_the_whole_repository(built: Built) -> None:
    """Its tests run and its documents build, so it has every file of the repository."""
    with tarfile.open(built.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    made = {name for name in names - built.files if ".egg-info/" in name}
    assert names - made - built.files == {"PKG-INFO"}
    assert built.files - names == set()


def test_build_warns_of_nothing_deprecated(built: Built) -> None:
    """Newer versions of setuptools can still build the package."""
    assert "deprecat" not in built.log.lower()


def test_distributions_pass_the_check_of_twine(built: Built) -> None:
    """PyPI can render the description, and nothing that it needs is missing."""
    command = [
        sys.executable,
        "-m",
        "twine",
        "check",
        "--strict",
        str(built.wheel),
        str(built.sdist),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_description_has_absolute_links(built: Built) -> None:
    """PyPI shows the README alone, so each link leads to the file of this version on the web."""
    metadata = built.metadata()
    description = str(metadata.get_payload())
    source = dict(each.split(", ") for each in metadata.get_all("Project-URL") or ())["Source"]
    links = re.findall(r"\]\(([^)\s]+)\)", description)
    links += re.findall(r"(?:src|srcset|href)=\"([^\"]+)", description)
    assert links
    for link in links:
        found = re.fullmatch(rf"{source}/(?:blob|raw)/v{metadata['Version']}/([^#]+)(#.*)?", link)
        assert link.startswith("#") or found or not link.startswith(source), link
        assert not found or (ROOT / found[1]).exists(), link
        assert link.startswith(("#", "https://", "http://")), link


def test_classifiers_are_true(built: Built) -> None:
    """PyPI knows each classifier; the Pythons are those that are tested; no plugin of pytest."""
    metadata = built.metadata()
    classifiers = set(metadata.get_all("Classifier") or ())
    known = pytest.importorskip("trove_classifiers")
    assert classifiers <= set(known.classifiers)
    assert not classifiers & set(known.deprecated_classifiers)
    pythons = {
        name.rpartition(" ")[2] for name in classifiers if re.search(r"Python :: 3\.\d+$", name)
    }
    assert pythons == set(python_versions("test.yml")) == set(python_versions("publish.yml"))
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = [each for each in wheel.namelist() if each.endswith("/entry_points.txt")]
        entry_points = configparser.ConfigParser()
        entry_points.read_string(wheel.read(name).decode())
    assert ("pytest11" in entry_points) == ("Framework :: Pytest" in classifiers)


def workflow(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load((WORKFLOWS / name).read_text()))


def steps(name: str) -> Iterable[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def python_versions(name: str) -> list[str]:
    """Return the Pythons that a workflow sets up."""
    (step,) = [each for each in steps(name) if "setup-python" in each.get("uses", "")]
    return str(step["with"]["python-version"]).split()


def test_workflow_publishes_what_was_tested() -> None:
    """It builds after the tests have passed; only the job that publishes may get a token."""
    publish = workflow("publish.yml")
    assert publish[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    assert publish["permissions"] == {"contents": "read"}
    build, upload = publish["jobs"]["build"], publish["jobs"]["publish"]
    assert "permissions" not in build
    assert (upload["needs"], upload["environment"]) == ("build", "pypi")
    assert upload["permissions"] == {"id-token": "write"}
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert commands == [
        ".ci/check-release",
        ".ci/run",
        "python -m pip install build twine",
        "python -m build",
        "python -m twine check --strict dist/*",
    ]
    assert upload["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    for step in [*steps("publish.yml"), *steps("test.yml")]:
        assert re.search(r"@(v\d+|release/v1)$", step.get("uses", "@v1")), step


@pytest.mark.parametrize(
    ("tag", "repository", "error"),
    [
        ("v{version}", "monitor-plugin/monitor-plugin", ""),
        ("v9.9.9", "monitor-plugin/monitor-plugin", "the tag is v9.9.9, and setup.cfg has version"),
        ("{version}", "monitor-plugin/monitor-plugin", "the tag is"),
        ("v{version}", "fork/monitor-plugin", "which is not in https://github.com/fork/"),
        ("v{version}", "monitor-plugin/monitor", "which is not in"),
    ],
)
def test_release_is_refused_under_another_name(tag: str, repository: str, error: str) -> None:
    """The tag is the version, and the URLs of the package are in the repository that publishes."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    variables = {
        "GITHUB_REF_NAME": tag.format(version=config["metadata"]["version"]),
        "GITHUB_REPOSITORY": repository,
        "GITHUB_SERVER_URL": "https://github.com",
    }
    command = [sys.executable, str(ROOT / ".ci" / "check-release")]
    run = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, bool(run.stderr)) == (int(bool(error)), bool(error))
    assert error in run.stderr


def test_descriptors_are_compiled_from_the_protocol(tmp_path: Path) -> None:
    """The committed descriptors of `backend.proto` are those that `make proto` writes."""
    out = tmp_path / "backend.binpb"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}", "backend.proto"]
    assert protoc.main(arguments) == 0
    assert out.read_bytes() == (ROOT / "monitor_plugin" / "rpc" / "backend.binpb").read_bytes()


@pytest.mark.parametrize("first", ["host", "monitor"])
def test_package_works_beside_a_hosts_own_backend_pb2(first: str, tmp_path: Path) -> None:
    """A host's generated `backend_pb2` and the monitor work in one process, in either order."""
    proto = (ROOT / "proto" / "backend.proto").read_text()
    proto = proto.replace("service Backend {", "message More { string a = 1; }\nservice Backend {")
    (tmp_path / "backend.proto").write_text(proto)
    arguments = ["protoc", f"-I{tmp_path}", f"--python_out={tmp_path}", "backend.proto"]
    assert protoc.main(arguments) == 0
    host = "import backend_pb2; backend_pb2.More(a='x')"
    monitor = "import monitor_plugin as m; m.Monitor(m.Settings(listen=None)).close()"
    code = f"{host}\n{monitor}" if first == "host" else f"{monitor}\n{host}"
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += [{str(ROOT)!r}]\n{code}"],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
