"""How large numbers of a configuration may be: beyond what is sensible, below what fails deep inside or never ends."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

MOST_INT, MOST_FLOAT = 2**31 - 1, 10**12
MOST = {  # by the name of a field, in whatever section
    "seed": 2**63 - 1,
    "seeds": 2**63 - 1,
    "epochs": 10**6,
    "warmup_epochs": 10**6,
    "freeze_epochs": 10**6,
    "checkpoint_every": 10**6,
    "batch_size": 2**24,
    "accumulate": 2**20,
    "workers": 1024,
    "num_workers": 1024,
    "devices": 1024,
    "num_nodes": 2**16,
    "image_size": 2**15,
    "local_size": 2**15,
    "patch_size": 2**12,
    "window_size": 2**12,
    "channels": 1024,
    "width": 2**16,
    "hidden": 2**20,
    "hidden_dim": 2**20,
    "bottleneck": 2**16,
    "bottleneck_dim": 2**16,
    "out_dim": 2**24,
    "depth": 1000,
    "query_depth": 1000,
    "stage_depths": 1000,
    "heads": 1024,
    "stage_heads": 1024,
    "mlp_ratio": 1024,
    "grid": 2**12,
    "num_local": 100,
    "counts": 2**16,
    "sides": 2**12,
    "mask_period": 2**12,
    "max_memory_gib": 2**20,
    "base_lr": 10**6,
    "lr": 10**6,
    "weight_decay": 10**6,
}


def words_for_truth(given: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """Write ``true`` as a word in fields of numbers, which then refuse it: Python takes it for 1."""
    return {
        name: _worded(value) if name in fields and not _takes_bool(fields[name].annotation) else value
        for name, value in given.items()
    }


def check_bound(name: str, value: Any) -> None:
    """Refuse a number beyond what fields of this name may have."""
    for member in _members(value):
        if isinstance(member, int | float) and not isinstance(member, bool):
            most = MOST.get(name, MOST_INT if isinstance(member, int) else MOST_FLOAT)
            if abs(member) > most:
                raise ValueError(f"must be at most {most:g}" if most >= 10**15 else f"must be at most {most:,}")


def _worded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_worded(member) for member in value]
    return str(value).lower() if isinstance(value, bool) else value


def _members(value: Any) -> list[Any]:
    return [inner for member in value for inner in _members(member)] if isinstance(value, list | tuple) else [value]


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any, object) or any(map(_takes_bool, get_args(annotation)))
