"""Which values of a run, a study or a sweep lead to something on disk: one list for all that hands runs on."""

SHARDS, WATCH, WEIGHTS, DEEPSPEED = "shards", "watch.shards", "model.weights", "train.deepspeed"
RUN_PATHS = (SHARDS, WATCH, WEIGHTS, DEEPSPEED)
"""Of a run, fine-tuning or pretraining; a value may be a list.

`WEIGHTS` may be a name that timm knows, and in a study `WATCH` names datasets.  `DEEPSPEED` is a file of the machine on
which a command is given, all others are those of the machines that train.
"""
STUDY_PATHS = ("shards_root", "weights_root", "ledger")
"""Of a study or a sweep, besides those of its runs."""


def path_of_run(name: str) -> str | None:
    """Return which of `RUN_PATHS` a dotted name is, in a run or somewhere in a study; None: it is none."""
    found = [key for key in RUN_PATHS if f".{name.strip()}".endswith(f".{key}")]
    return max(found, key=len, default=None)


def is_path_of_study(name: str) -> bool:
    """Return whether a dotted name is one of `STUDY_PATHS`."""
    return name.strip() in STUDY_PATHS
