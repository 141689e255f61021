"""Asking every node of the connected cluster, for an answer within a time: a silent node is told, not waited for.

Questions take no CPU, so a cluster that is full answers too.  Their functions go by value: a node that has another
version of this program, or none, can still say so.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cxrdist.dispatch.versions import Difference, Versions, differences, versions_here
from cxrdist.errors import UserError
from cxrdist.log import get_logger

__all__ = ["Answer", "Comparison", "Node", "ask", "check_versions", "compare_versions", "list_nodes", "versions_here"]

log = get_logger(__name__)

ANSWER_TIMEOUT_S = 60.0
"""How long a node may take to its answer: a fresh worker process of a busy machine on a slow file system."""
ID_DIGITS = 6
MOST_NAMED = 4
"""Nodes that a sentence names; of more, it tells the number."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or one of several that Ray was told of on the same machine."""

    id: str
    address: str
    """Its IP address, with the beginning of its id where several nodes share one."""
    ip: str
    alive: bool
    cpus: float
    gpus: float
    memory: float
    """Bytes that Ray lets work reserve."""


@dataclass(frozen=True)
class Answer:
    """What a node answered, or why it did not."""

    value: Any = None
    fault: str = ""
    """Part of a sentence: ``no answer within 60 s``.  Of an error its type alone: the text may name what is private to
    the node, and is logged for ``-v``."""
    gone: bool = False
    """Whether the fault is that the node is silent or dead, and not that the question failed there."""
    asked_at: float = 0.0
    """Seconds since 1970 by the clock of this machine."""
    answered_at: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The versions here, and how those of the nodes differ."""

    here: Versions
    versions: dict[Node, Versions]
    faults: dict[Node, Answer]
    """Nodes that did not say."""

    def differing(self) -> dict[Difference, list[Node]]:
        """Return the nodes of each difference."""
        found: dict[Difference, list[Node]] = {}
        for node, there in self.versions.items():
            for difference in differences(self.here, there):
                found.setdefault(difference, []).append(node)
        return found


def list_nodes() -> list[Node]:
    """Return the nodes of the connected cluster, dead ones among them, sorted by address."""
    import ray  # noqa: PLC0415

    told = ray.nodes()
    living = [node["NodeManagerAddress"] for node in told if node["Alive"]]
    nodes = []
    for node in told:
        ip, has = node["NodeManagerAddress"], node.get("Resources") or {}
        shared = node["Alive"] and living.count(ip) > 1
        address = f"{ip}/{node['NodeID'][:ID_DIGITS]}" if shared else ip
        amounts = [float(has.get(kind, 0.0)) for kind in ("CPU", "GPU", "memory")]
        nodes.append(Node(node["NodeID"], address, ip, bool(node["Alive"]), *amounts))
    return sorted(nodes, key=lambda node: node.address)


def ask(
    function: Callable[..., Any],
    *arguments: Any,
    nodes: Iterable[Node] | None = None,
    each: dict[Node, tuple[Any, ...]] | None = None,
    gpus: float = 0,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> dict[Node, Answer]:
    """Return what `function` returns on each node.

    Args:
        function: Of a module whose functions use the standard library alone, as it may be all that a node has.
        arguments: Of every call; must pickle.
        nodes: Which nodes; None: those that are alive.
        each: Further arguments of each node.
        gpus: GPUs that the call takes; it waits for them.
        timeout_s: For all of them together; what is at work then is ended.
    """
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    asked = list(nodes) if nodes is not None else [node for node in list_nodes() if node.alive]
    with _by_value(function):
        # Once more: Ray may have sent a question to the very process that an earlier one, out of time, is ended with.
        task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=1)(function)
        sent: dict[Any, tuple[Node, float]] = {}
        for node in asked:
            pinned = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
            asked_at = time.time()
            sent[pinned.remote(*arguments, *(each or {}).get(node, ()))] = (node, asked_at)
    answers = dict.fromkeys(asked, Answer(fault=f"no answer within {timeout_s:g} s", gone=True))
    until, pending = time.monotonic() + timeout_s, list(sent)
    try:
        while pending:
            ready, pending = ray.wait(pending, timeout=max(0.0, until - time.monotonic()))
            if not ready:
                break
            node, asked_at = sent[ready[0]]
            answers[node] = _answer(ready[0], asked_at)
    finally:
        for left in pending:
            with suppress(Exception):
                ray.cancel(left, force=True)
    return answers


def compare_versions(*, timeout_s: float = ANSWER_TIMEOUT_S) -> Comparison:
    """Return the versions of this process and of every node that is alive."""
    answers = ask(versions_here, timeout_s=timeout_s)
    return Comparison(
        versions_here(),
        {node: answer.value for node, answer in answers.items() if not answer.fault},
        {node: answer for node, answer in answers.items() if answer.fault},
    )


def check_versions(*, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
    """Make sure that every node of the connected cluster works with what this process works with.

    Other differences (a patch version of Python, timm, deepspeed) are noted.  A node that is silent or dies is noted as
    well: the cluster's own care for dying machines begins where this ends.

    Raises:
        UserError: If Python's minor version, ray, torch, or cxrdist and its code are not the same everywhere; if a node
            fails at the question, or none answers.
    """
    compared = compare_versions(timeout_s=timeout_s)
    asked = len(compared.versions) + len(compared.faults)
    silent = [node for node, answer in compared.faults.items() if answer.gone]
    failed = {node: answer for node, answer in compared.faults.items() if not answer.gone}
    differing = compared.differing()
    wrong = [_told(difference, nodes, asked) for difference, nodes in differing.items() if difference.decisive]
    wrong += [f"{answer.fault} on {name_nodes([node], asked)}" for node, answer in failed.items()]
    if wrong:
        raise UserError(
            f"Every node of the cluster must have the same program as this process, got {'; '.join(wrong)}. Install "
            "the same wheel and libraries everywhere, let a runtime environment carry them, or start all nodes from "
            "one image; `cxrdist doctor --address` lists the versions."
        )
    if not compared.versions:
        raise UserError(
            f"A node of the cluster must answer, got {name_nodes(silent, asked)} without an answer within "
            f"{timeout_s:g} s. `cxrdist doctor --address` looks closer."
        )
    for difference, nodes in differing.items():
        log.warning("The nodes do not all have the same libraries: %s.", _told(difference, nodes, asked))
    if silent:
        log.warning("No answer from %s within %g s; goes on without.", name_nodes(silent, asked), timeout_s)


def name_nodes(nodes: Sequence[Node], of: int) -> str:
    """Return ``2 of 5 nodes (10.0.0.2, 10.0.0.3)``."""
    named = ", ".join(node.address for node in nodes[:MOST_NAMED])
    more = ", ..." if len(nodes) > MOST_NAMED else ""
    return f"{len(nodes)} of {of} node{'s' * (of != 1)} ({named}{more})"


def _told(difference: Difference, nodes: Sequence[Node], of: int) -> str:
    return f"{difference} on {name_nodes(nodes, of)}"


def _answer(reference: Any, asked_at: float) -> Answer:
    import ray  # noqa: PLC0415

    answered_at = time.time()
    try:
        value = ray.get(reference, timeout=ANSWER_TIMEOUT_S)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None) or error
        log.debug("%s", error)
        return Answer(fault=type(cause).__name__)
    except ray.exceptions.RuntimeEnvSetupError as error:
        log.debug("%s", error)
        return Answer(fault="a runtime environment that cannot be set up")
    except ray.exceptions.RayError as error:  # the node or its worker has died
        return Answer(fault=f"{type(error).__name__}", gone=True)
    return Answer(value, asked_at=asked_at, answered_at=answered_at)


@contextmanager
def _by_value(function: Callable[..., Any]) -> Iterator[None]:
    """Let Ray send `function` with all that its module has, and not its module's name."""
    from ray import cloudpickle  # noqa: PLC0415

    module = sys.modules[function.__module__]
    known = module.__name__ in cloudpickle.list_registry_pickle_by_value()
    if not known:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        if not known:
            cloudpickle.unregister_pickle_by_value(module)
