"""Whatever is missing or broken on a machine is a finding with a remedy, and never a traceback."""

import getpass
import json
import os
import resource
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cxrdist.cli.main import run
from cxrdist.dicom import decode
from cxrdist.doctor import examine, folders, libraries, machine, measure
from cxrdist.doctor.apart import look_apart
from cxrdist.doctor.finding import look
from cxrdist.doctor.measure import tidy
from cxrdist.doctor.places import judge

STATES = {"ok", "note", "problem"}


@pytest.fixture
def cli(capsys):
    def run_cli(*arguments):
        with pytest.raises(SystemExit) as ended:
            run([str(one) for one in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run_cli


def found(probe):
    return {finding.name: finding for finding in look("probe", probe)}


def only(probe):
    [finding] = look("probe", probe)
    return finding


@pytest.mark.parametrize("probe", examine.PROBES.values(), ids=lambda probe: probe.__name__)
def test_every_part_of_the_machine_has_a_finding(probe):
    for finding in look("probe", probe):
        assert finding.name != "probe", finding
        assert finding.state in STATES and finding.found
        assert finding.state == "ok" or finding.remedy


MISSING = [
    ("torch", "torch"), ("GPUs", "torch"), ("deepspeed", "deepspeed"), ("deepspeed", "torch"), ("timm", "timm"),
    ("ray", "ray"), ("other libraries", "lightly"), ("DICOM decoders", "cxrdist.dicom.decode"),
    ("weights", "huggingface_hub.constants"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hidden"), MISSING)
def test_a_library_that_is_not_there_is_a_problem_with_a_remedy(name, hidden, monkeypatch):
    monkeypatch.setitem(sys.modules, hidden, None)
    finding = list(look(name, libraries.PROBES[name]))[-1]
    assert finding.state == "problem" and hidden in finding.found and finding.remedy


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('libsomething.so.12: cannot open shared object file')", "libsomething.so.12"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import time; time.sleep(60)", "did not end within 2 s"),
        ("print('noise'); import os; os.write(1, b'noise'); raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_library_that_breaks_while_it_loads_is_a_finding_and_the_next_is_looked_at(code, told, tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text(code)
    (tmp_path / "huggingface_hub").mkdir()
    (tmp_path / "huggingface_hub" / "__init__.py").touch()
    (tmp_path / "huggingface_hub" / "constants.py").write_text(f"HF_HUB_CACHE = {str(tmp_path)!r}")
    (tmp_path / "models--a--b").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    broken, next_one = look_apart(["timm", "weights"], timeout_s=2 if "sleep" in code else 60)
    assert broken.name == "timm" and broken.state == "problem" and told in broken.found and broken.remedy
    assert next_one.name == "weights" and next_one.found.startswith("1 models")


def test_nothing_but_python_is_needed_to_look_at_the_machine(tmp_path):
    code = """
        import os, sys
        for name in ("torch", "numpy", "ray", "pydantic", "yaml", "rich", "cv2"):
            sys.modules[name] = None
        from cxrdist.doctor.examine import PROBES, look
        for name, probe in PROBES.items():
            for finding in look(name, probe):
                print(finding.name, finding.state, finding.found, sep="|")
    """
    bare = {"HOME": str(tmp_path / "gone"), "TMPDIR": str(tmp_path), "PATH": "", "LC_ALL": "C"}
    bare |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = {line.split("|")[0]: line.split("|")[1:] for line in ended.stdout.splitlines()}
    assert told["compiler"][0] == "note" and "a C++ compiler" in told["compiler"][1]
    assert told["locale"][0] == "note"
    assert told["python"][0] == "ok" and told["clock"][0] != "problem"
    assert "could not" not in ended.stdout and "Error" not in ended.stdout


def test_folders_that_cannot_be_written_and_missing_shared_memory_are_problems(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(measure, "SHARED_MEMORY", tmp_path / "gone")
    disk = found(folders.disk)
    assert disk["disk: data folder"].state == "problem" and "XDG_DATA_HOME" in disk["disk: data folder"].remedy
    assert set(disk) == {f"disk: {name} folder" for name in ("data", "cache", "temporary", "current")}
    assert str(tmp_path) not in str(disk)
    assert only(folders.shared_memory).state == "problem"


def test_a_full_disk_and_a_small_one_are_told(monkeypatch):
    for free, state in ((10 * 2**30, "note"), (2**20, "problem")):
        monkeypatch.setattr(measure, "space", lambda folder, free=free: (1e15, free))
        assert {finding.state for finding in found(folders.disk).values()} == {state}


def test_a_folder_that_refuses_files_is_a_problem(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    finding = found(folders.disk)["disk: cache folder"]
    assert finding.state == "problem" and "not writable" in finding.found and "XDG_CACHE_HOME" in finding.remedy


@pytest.mark.parametrize(("files", "state"), [(512, "problem"), (2048, "note"), (8192, "ok")])
def test_few_open_files_are_told(files, state):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY,) and hard < files:
        pytest.skip(f"the limit cannot be raised to {files} here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        assert found(machine.limits)["limit of open files"].state == state
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_clock_from_before_the_release_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "RELEASED", machine.RELEASED.replace(year=2999))
    assert only(machine.clock).state == "problem"


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_a_control_group_and_of_those_above_it_count(version, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "GROUPS", tmp_path)
    monkeypatch.setattr(measure, "OWN_GROUPS", tmp_path / "own")
    if version == 2:
        (tmp_path / "own").write_text("0::/outer/inner\n")
        (tmp_path / "outer" / "inner").mkdir(parents=True)
        (tmp_path / "outer" / "inner" / "cpu.max").write_text("max 100000\n")
        (tmp_path / "outer" / "cpu.max").write_text("50000 100000\n")
        (tmp_path / "outer" / "memory.max").write_text(f"{2**30}\n")
    else:
        (tmp_path / "own").write_text("4:cpu,cpuacct:/job\n3:memory:/not/seen/in/a/container\n0::/\n")
        (tmp_path / "cpu,cpuacct" / "job").mkdir(parents=True)
        (tmp_path / "cpu,cpuacct" / "job" / "cpu.cfs_quota_us").write_text("50000\n")
        (tmp_path / "cpu,cpuacct" / "job" / "cpu.cfs_period_us").write_text("100000\n")
        (tmp_path / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("-1\n")
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**30}\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert measure.cores() == 0.5
    assert measure.memory() == 2**30
    assert only(machine.cores).state == "note" and "OMP_NUM_THREADS=1" in only(machine.cores).remedy
    assert only(machine.memory).state == "problem" and "container" in only(machine.memory).found


def test_gpus_that_torch_cannot_use_or_that_err_are_problems(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA A, 81920, 10, 0, 535.1'\necho '1, NVIDIA A, 81920, 10, 3, 535.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rows = measure.gpus()
    assert [libraries._condition(row).state for row in rows] == ["ok", "problem"]
    assert libraries._condition({**rows[0], "memory.used": "40000"}).state == "note"
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        assert found(libraries.torch)["torch"].state == "problem"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "CUDA_VISIBLE_DEVICES" in found(libraries.torch)["torch"].remedy
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert measure.gpus() is None


def test_every_transfer_syntax_has_a_decoder_and_a_missing_one_is_named(monkeypatch):
    assert only(libraries.decoders).state == "ok"
    monkeypatch.setitem(decode.PLUGINS, "rle", ())
    finding = only(libraries.decoders)
    assert finding.state == "problem" and "RLE Lossless" in finding.found and "gdcm" in finding.remedy


def test_messages_of_libraries_lose_what_is_private():
    text = tidy(f"{Path.home()}/x {sys.prefix}/lib/y.so {Path.cwd()}/z on {socket.gethostname()}")
    assert str(Path.cwd()) not in text and sys.prefix not in text
    assert len(str(Path.home())) < 2 or str(Path.home()) + "/x" not in text
    assert len(socket.gethostname()) <= 3 or socket.gethostname() not in text
    assert len(getpass.getuser()) <= 4 or getpass.getuser() not in text
    assert len(tidy("x" * 10_000)) < 400


def test_what_a_node_says_of_its_own_failure_is_tidied_there():
    code = "import sys; print(f'[W] first\\nno file {sys.argv[1]}\\n[W] last', file=sys.stderr)"
    said = measure.run_script(code, [f"{sys.prefix}/lib/y.so"], 20.0, {})
    assert said["err"] == "no file PREFIX/lib/y.so"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_problem_is_told_with_its_remedy_and_ends_with_exit_code_1(as_json, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "APART", ())
    code, out, err = cli("doctor", "--json")
    findings = json.loads(out)["findings"]
    assert code == int(any(finding["state"] == "problem" for finding in findings)) and not err
    assert all(set(finding) == {"name", "state", "found", "remedy"} for finding in findings)
    monkeypatch.setattr(measure, "SHARED_MEMORY", tmp_path / "gone")
    code, out, err = cli("doctor", *(["--json"] if as_json else []))
    assert code == 1 and not err and "no /dev/shm" in out and "input.workers=0" in out
    assert str(tmp_path) not in out and (json.loads(out)["problems"] if as_json else "problem" in out)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--path", "/x"], 2, "must come with `--address`"),
        (["--address", "127.0.0.1:1", "--path", "x"], 2, "`--path` must be absolute, got 'x'"),
        (["--address", "127.0.0.1:1"], 1, "must name a running Ray cluster"),
        (["--address", "here"], 2, "must be HOST:PORT"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, code, sentence, cli):
    ended, out, err = cli("doctor", *arguments)
    assert (ended, out) == (code, "") and err.count("\n") == 1 and sentence in err


def test_a_folder_that_is_another_on_some_node_is_no_shared_one(tmp_path):
    places = {"a": tmp_path / "one", "b": tmp_path / "one", "c": tmp_path / "two"}
    for folder in places.values():
        folder.mkdir(exist_ok=True)
    names = {place: measure.new_mark() for place in places}
    for place, folder in places.items():
        assert measure.write_marks([str(folder)], names[place]) == {str(folder): ""}
    measure.SIGHT_S, patience = 0.1, measure.SIGHT_S
    try:
        told = {p: measure.read_marks({str(folder): [*names.values()]})[str(folder)] for p, folder in places.items()}
    finally:
        measure.SIGHT_S = patience
        for folder in places.values():
            measure.remove_marks([str(folder)], [*names.values()])
    seen = {place: {owner for owner, name in names.items() if name in told[place]} for place in places}
    finding = judge("/x", dict.fromkeys(places, ""), seen)
    assert finding.state == "problem" and "2, each seen by: a, b; c" in finding.found
    assert not [*tmp_path.glob("*/*")] and not [*tmp_path.glob("*/.*")]
    whole = {place: set(places) for place in places}
    assert judge("/x", dict.fromkeys(places, ""), whole).state == "ok"
    assert "not read in time on c" in judge("/x", dict.fromkeys(places, ""), {"a": {"a"}, "b": {"b"}}).found
    refused = measure.write_marks([str(tmp_path / "gone"), "/proc/self"], "mark")
    finding = judge("/x", {"a": "", "b": refused["/proc/self"], "c": refused[str(tmp_path / "gone")]}, whole)
    assert finding.state == "problem" and "no such folder on c" in finding.found


@pytest.mark.slow
def test_this_machine_is_told_whole_and_nothing_private_with_it(cli):
    code, out, err = cli("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert not err and code == int(any(finding["state"] == "problem" for finding in findings.values()))
    assert {"torch", "backends", "deepspeed", "timm", "ray", "DICOM decoders", "weights", "clock"} <= set(findings)
    for name in ("torch", "deepspeed", "timm", "ray", "DICOM decoders", "other libraries"):
        assert findings[name]["state"] == "ok", findings[name]
    for private in (str(Path.cwd()), sys.prefix, socket.gethostname()):
        assert private not in out
