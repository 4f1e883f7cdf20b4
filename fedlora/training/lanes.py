"""Several cores, several streams of work side by side.

On CPUs the operations of a small model are too short to be shared between cores: threads inside each of them wait for one
another a thousand times a step, and on a machine that does anything else they wait long. A lane is one core with one thread
and modules of its own on the same frozen weights; what it computes does not depend on how many lanes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

from fedlora.training.backbone import Backbone

Task = TypeVar("Task")
Result = TypeVar("Result")


def lanes_of(backbone: Backbone) -> int:
    """Return how many lanes this device has: one per torch thread on CPUs, one elsewhere."""
    return torch.get_num_threads() if backbone.placement.device.type == "cpu" else 1


def side_by_side(backbone: Backbone, tasks: Sequence[Task], work: Callable[[Backbone, Task], Result]) -> list[Result]:
    """Return `work(backbone, task)` of each task, in order; every call has a backbone to itself.

    Tasks must agree on the update that is merged into the frozen weights, which they share.
    """
    lanes = min(lanes_of(backbone), len(tasks))
    if lanes < 2:
        return [work(backbone, task) for task in tasks]
    free: SimpleQueue[Backbone] = SimpleQueue()
    for twin in backbone.twins(lanes):
        free.put(twin)

    def run(task: Task) -> Result:
        own = free.get()
        try:
            return work(own, task)
        finally:
            free.put(own)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The choice of kernels is global: made once here, whatever the lanes do inside restores the same.
        with backbone.kernels(), ThreadPoolExecutor(lanes) as pool:
            return list(pool.map(run, tasks))
    finally:
        torch.set_num_threads(threads)
