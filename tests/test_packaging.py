"""What is shipped: the wheel, and its data."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from grpc_tools import protoc

ROOT = Path(__file__).parent.parent


def test_wheel_has_the_package_alone(tmp_path: Path) -> None:
    """The wheel has `monitor_plugin` with its data, and nothing of hooks, proto or tests."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    command += ["--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"monitor_plugin"}
    for name in ("py.typed", "rpc/backend.binpb", "demo/backend.py", "http/app.py"):
        assert f"monitor_plugin/{name}" in names
    page = ROOT / "monitor_plugin" / "http" / "static"
    for path in page.rglob("*.*"):
        assert str(path.relative_to(ROOT)) in names


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
