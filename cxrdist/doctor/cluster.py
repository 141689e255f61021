"""What the nodes of the connected cluster have, and whether they can work together.

Each question has a time limit, after which a node that is silent is a finding; it is not asked again.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxrdist.dispatch.nodes import Answer, Comparison, Node, ask, compare_versions, list_nodes, name_nodes
from cxrdist.doctor import measure, reduction
from cxrdist.doctor.finding import Finding, size
from cxrdist.doctor.folders import LEAST_DISK, LEAST_SHARED, SOME_DISK, SOME_SHARED
from cxrdist.doctor.machine import SOME_FILES
from cxrdist.doctor.places import check_paths

TIMEOUT_S = 60.0
ROUNDS = 5
"""Times that each clock is asked; the shortest round trip bounds it best."""
CLOCK_NOTE_S, CLOCK_PROBLEM_S = 1.0, 10.0
"""Leases and heartbeats of a study are compared between machines."""
REDUCED_MIB = 64
REDUCE_TIMEOUT_S = 90.0
GPU_TIMEOUT_S = 15.0
"""How long a GPU of each node may take to be free."""

INSTALL = "Install the same wheel and libraries everywhere, let a runtime environment carry them, or use one image."
NETWORK = (
    "Let every node reach every port of the others; where a machine has several networks, or its own name leads to "
    "127.0.0.1, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right one's name before `ray start`."
)

Tell = Callable[[Iterable[Finding]], None]


@dataclass
class ClusterReport:
    """What was found, and a row of facts for each node."""

    findings: list[Finding] = field(default_factory=list)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By address."""


def examine_cluster(
    paths: Sequence[str] = (), *, timeout_s: float = TIMEOUT_S, told: Callable[[Finding], None] | None = None
) -> ClusterReport:
    """Return what is found about the cluster that this process is connected to.

    Args:
        paths: Folders that must be the same, and writable, on every node.
        timeout_s: For each question to all nodes.
        told: Called with each finding as soon as it is there.
    """
    report = ClusterReport()

    def tell(findings: Iterable[Finding]) -> None:
        for finding in findings:
            report.findings.append(finding)
            if told is not None:
                told(finding)

    nodes = list_nodes()
    alive = [node for node in nodes if node.alive]
    for node in nodes:
        if node.alive or node.address not in {one.ip for one in alive}:
            facts = {"alive": node.alive, "cpus": node.cpus, "gpus": node.gpus, "memory": node.memory}
            report.nodes[node.address] = facts
    tell(_count(alive, [node for node in nodes if not node.alive]))
    compared = compare_versions(timeout_s=timeout_s)
    tell(_versions(compared, alive))
    answering = list(compared.versions)
    for node, versions in compared.versions.items():
        report.nodes.setdefault(node.address, {})["versions"] = versions
    tell(_clocks(answering, report, timeout_s))
    tell(_equipment(answering, list(paths), report, timeout_s))
    if paths:
        tell(check_paths(paths, answering, timeout_s=timeout_s))
    seen = _reduce_over(answering, "gloo", tell)
    tell(_gpus(answering, seen))
    with_gpus = [node for node in answering if node.gpus >= 1 and seen.get(node)]
    if len(with_gpus) > 1:
        tell(_reduce_gpus(with_gpus, tell))
    return report


def _count(alive: Sequence[Node], dead: Sequence[Node]) -> Iterator[Finding]:
    cpus, gpus = sum(node.cpus for node in alive), sum(node.gpus for node in alive)
    text = f"{len(alive)} alive, {cpus:g} CPUs and {gpus:g} GPUs"
    if not dead:
        yield Finding("nodes", "ok", text)
        return
    remedy = "Nothing, if they were removed; else look into the log of `ray start` there."
    yield Finding("nodes", "note", f"{text}; {len(dead)} have left ({_addresses(dead)})", remedy)


def _versions(compared: Comparison, alive: Sequence[Node]) -> Iterator[Finding]:
    for node, answer in compared.faults.items():
        remedy = "Look whether the machine is up and reaches the head; `ray status` there." if answer.gone else INSTALL
        yield Finding(f"node {node.address}", "problem", answer.fault, remedy)
    differing = compared.differing()
    for difference, nodes in differing.items():
        text = f"{difference} on {name_nodes(nodes, len(alive))}"
        yield Finding("versions", "problem" if difference.decisive else "note", text, INSTALL)
    if compared.versions and not differing:
        told = ", ".join(f"{name} {version}" for name, version in compared.here.items())
        yield Finding("versions", "ok", f"the same on all that answer: {told}")


def _clocks(nodes: Sequence[Node], report: ClusterReport, timeout_s: float) -> Iterator[Finding]:
    """Compare clocks: a node's time was read between the question and the answer, so the difference lies in between."""
    bounds: dict[Node, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for node, answer in ask(measure.now, nodes=nodes, timeout_s=timeout_s).items():
            if not answer.fault:
                low, high = bounds.get(node, (float("-inf"), float("inf")))
                bounds[node] = (max(low, answer.value - answer.answered_at), min(high, answer.value - answer.asked_at))
    off = {node: max(low, -high, 0.0) for node, (low, high) in bounds.items()}
    for node, (low, high) in bounds.items():
        report.nodes[node.address] |= {
            "clock_s": round((low + high) / 2, 4),
            "clock_within_s": round((high - low) / 2, 4),
        }
    wrong = [node for node in off if off[node] > CLOCK_NOTE_S]
    if wrong:
        worst = max(off.values())
        text = f"at least {worst:.1f} s off on {name_nodes(wrong, len(nodes))}"
        yield Finding(
            "clocks", "problem" if worst > CLOCK_PROBLEM_S else "note", text, "Let NTP set them (chrony, timesyncd)."
        )
    elif bounds:
        most = max(max(abs(low), abs(high)) for low, high in bounds.values())
        yield Finding("clocks", "ok", f"differ from this one by less than {most:.3f} s")


def _equipment(nodes: Sequence[Node], paths: list[str], report: ClusterReport, timeout_s: float) -> Iterator[Finding]:
    answers = ask(measure.describe, paths, nodes=nodes, timeout_s=timeout_s)
    facts = {node: answer.value for node, answer in answers.items() if not answer.fault}
    for node, answer in answers.items():
        if answer.fault:
            yield Finding(
                f"node {node.address}", "problem", answer.fault, "Look into the machine: it stopped answering."
            )
        else:
            report.nodes[node.address] |= answer.value
    if not facts:
        return
    yield _least(
        "shared memory",
        {node: one["shared_memory"] for node, one in facts.items()},
        LEAST_SHARED,
        SOME_SHARED,
        "Start its container with `--shm-size=8g` (Kubernetes: `emptyDir`, `medium: Memory`).",
    )
    temporary = {node: one["temporary"] for node, one in facts.items()}
    yield _least("free disk: temporary folder", temporary, LEAST_DISK, SOME_DISK, "Make room, or set `--temp-dir`.")
    for path in paths:
        free = {node: one["free"][path] for node, one in facts.items() if path in one["free"]}
        if free:
            yield _least(f"free disk: {path}", free, LEAST_DISK, SOME_DISK, "Make room there.")
    few = [node for node, one in facts.items() if 0 <= one["open_files"] < SOME_FILES]
    if few:
        text = f"fewer than {SOME_FILES} on {name_nodes(few, len(nodes))}"
        yield Finding("limit of open files", "note", text, "`ulimit -n 65536` before `ray start`.")
    crowded = [node for node, one in facts.items() if one["cores"] and node.cpus > one["cores"]]
    if crowded:
        text = f"Ray was told of more CPUs than there are cores on {name_nodes(crowded, len(nodes))}"
        yield Finding("cores", "note", text, "Trials there share cores; see `--num-cpus` of `ray start`.")


def _least(name: str, amounts: dict[Node, float | None], least: float, some: float, remedy: str) -> Finding:
    known = {node: amount for node, amount in amounts.items() if amount is not None}
    if not known:
        return Finding(name, "note", "no node tells", "`df -h` there.")
    lowest = min(known.values())
    low = [node for node, amount in known.items() if amount < some]
    if not low:
        return Finding(name, "ok", f"{size(lowest)} or more")
    text = f"as little as {size(lowest)}, {len(low)} of {len(amounts)} nodes below {size(some)} ({_addresses(low)})"
    return Finding(name, "problem" if lowest < least else "note", text, remedy)


def _gpus(nodes: Sequence[Node], seen: dict[Node, int]) -> Iterator[Finding]:
    """Compare the GPUs that Ray gives out with those that torch sees."""
    short = [node for node in nodes if node in seen and seen[node] < node.gpus]
    unused = [node for node in nodes if seen.get(node, 0) > node.gpus]
    if short:
        told = ", ".join(f"{node.address}: {seen[node]} of {node.gpus:g}" for node in short[:4])
        remedy = "Install a driver that torch's CUDA can work with, or start Ray with the right `--num-gpus`."
        yield Finding("GPUs", "problem", f"torch sees fewer than Ray gives out ({told})", remedy)
    if unused:
        remedy = "Nothing, if that is meant; else start Ray without `--num-gpus`, or with all."
        yield Finding("GPUs", "note", f"Ray was not told of all on {name_nodes(unused, len(nodes))}", remedy)
    if not short and not unused and any(seen.values()):
        yield Finding("GPUs", "ok", f"torch sees all {sum(seen.values())}")


def _reduce_gpus(nodes: Sequence[Node], tell: Tell) -> list[Finding]:
    """Reduce between one GPU of each node, if those are free: a GPU that a trial has is not touched."""
    free = ask(measure.now, nodes=nodes, gpus=1, timeout_s=GPU_TIMEOUT_S)
    busy = [node for node, answer in free.items() if answer.fault]
    if busy:
        text = f"not tried: no GPU is free on {name_nodes(busy, len(nodes))}"
        return [Finding("all-reduce, NCCL", "note", text, "Look again when nothing runs.")]
    _reduce_over(nodes, "nccl", tell)
    return []


def _reduce_over(nodes: Sequence[Node], backend: str, tell: Tell) -> dict[Node, int]:
    """Sum 64 MiB over all nodes, a process each, tell how it went, and return how many GPUs torch sees on each."""
    name = f"all-reduce, {'NCCL' if backend == 'nccl' else backend}"
    if not nodes:
        return {}
    gpus = 1 if backend == "nccl" else 0
    port = ask(measure.free_port, nodes[0].ip, nodes=nodes[:1], timeout_s=TIMEOUT_S)[nodes[0]]
    if port.fault:
        tell([Finding(name, "problem", f"{nodes[0].address} cannot be listened at: {port.fault}", NETWORK)])
        return {}
    limit = REDUCE_TIMEOUT_S
    answers = ask(
        measure.run_script,
        inspect.getsource(reduction),
        nodes=nodes,
        gpus=gpus,
        each={
            node: (
                [str(rank), str(len(nodes)), backend, str(REDUCED_MIB), str(limit / 2)],
                limit,
                {"MASTER_ADDR": nodes[0].ip, "MASTER_PORT": str(port.value), "OMP_NUM_THREADS": "1"},
            )
            for rank, node in enumerate(nodes)
        },
        timeout_s=limit + 10,
    )
    facts = {node: _said(answer.value["out"]) for node, answer in answers.items() if not answer.fault}
    tell([_judge_reduction(name, nodes, answers, facts)])
    return {node: int(said["gpus"]) for node, said in facts.items() if "gpus" in said}


def _judge_reduction(
    name: str, nodes: Sequence[Node], answers: dict[Node, Answer], facts: dict[Node, dict[str, Any]]
) -> Finding:
    done = [node for node in nodes if facts.get(node, {}).get("step") == "reduced"]
    if len(done) == len(nodes):
        if not all(said["right"] for said in facts.values()):
            return Finding(name, "problem", "the sum is wrong", "Take the nodes out of use and look for faulty memory.")
        if len(nodes) == 1:
            return Finding(name, "ok", "one node: torch works there, and there is nothing to reduce between")
        seconds = max(float(said["seconds"]) for said in facts.values())
        rate = REDUCED_MIB * 2**20 / seconds / 1e9
        return Finding(name, "ok", f"{len(nodes)} nodes, {REDUCED_MIB} MiB in {seconds:.3f} s, {rate:.2f} GB/s")
    reached: dict[str, list[Node]] = {}
    for node in nodes:
        if node not in done:
            reached.setdefault(_stop(answers[node], facts.get(node, {})), []).append(node)
    told = "; ".join(f"{stop} on {name_nodes(stopped, len(nodes))}" for stop, stopped in reached.items())
    unloaded = any(said.get("step") == "started" for said in facts.values())
    return Finding(name, "problem", told, INSTALL if unloaded else NETWORK)


def _stop(answer: Answer, said: dict[str, Any]) -> str:
    """Return how far a rank came, and why no further."""
    if answer.fault:
        return str(answer.fault)
    why = answer.value["err"] or "it waited until its time was over"
    return f"{said.get('step', 'not started')}, then {why}"


def _said(out: str) -> dict[str, Any]:
    """Return what a rank said, later lines over earlier ones."""
    facts: dict[str, Any] = {}
    for line in out.splitlines():
        try:
            facts |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return facts


def _addresses(nodes: Sequence[Node], most: int = 4) -> str:
    return ", ".join(node.address for node in nodes[:most]) + (", ..." if len(nodes) > most else "")
