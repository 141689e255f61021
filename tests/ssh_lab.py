"""Hosts of a lab that let each other in by ssh: keys, settings and logs are in a folder, none is the machine's."""

import shutil
import subprocess
import time
from pathlib import Path

from lab import Host

SSHD = "/usr/sbin/sshd"
READY_S = 20
SERVER = """HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
"""
CLIENT = """Host *
  IdentityFile {folder}/id
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
SERVE = f"mount -t tmpfs none /run && mkdir /run/sshd && exec {SSHD} -f $0 -E $1"
"""sshd wants a folder in /run, which is the host's own here."""


def start_sshd(folder: Path, *hosts: Host) -> Path:
    """Have `hosts` let in who has the key in `folder`; return the folder of an `ssh` that has it, for PATH."""
    folder.mkdir()
    for key in ("id", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd_config").write_text(SERVER.format(folder=folder), encoding="ascii")
    (folder / "config").write_text(CLIENT.format(folder=folder), encoding="ascii")
    programs = folder / "bin"
    programs.mkdir()
    ssh = programs / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n', encoding="ascii")
    ssh.chmod(0o755)
    for host in hosts:
        host.run("sh", "-c", SERVE, folder / "sshd_config", folder / f"{host.name}.log")
    for host in hosts:
        _wait_until_in(hosts[0], ssh, host)
    return programs


def why_not() -> str:
    """Return why no host can be reached by ssh here; empty if it can."""
    for program in (SSHD, "ssh", "ssh-keygen", "pdsh"):
        if shutil.which(program) is None:
            return f"ssh between hosts needs the program `{Path(program).name}`"
    return ""


def _wait_until_in(here: Host, ssh: Path, host: Host) -> None:
    until = time.monotonic() + READY_S
    while here.start(ssh, "-n", host.name, "true", stderr=subprocess.DEVNULL).wait():
        assert time.monotonic() < until, f"no sshd on {host.name}"
        time.sleep(0.1)
