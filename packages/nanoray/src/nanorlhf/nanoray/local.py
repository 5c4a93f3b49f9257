"""The local engine: processes of this machine, started from this process."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .client import Client, driver_context
from .engine import Engine
from .environment import environment
from .messages import DRIVER
from .policies import Policy, check_policy
from .refs import HoldLog
from .resources import SLOT, UNIT, Pool, demand, inherited_gpus
from .views import Reader

_MIN_TASK_PROCESSES = 32


def start_local(
    *,
    num_cpus: float | None,
    num_gpus: int | None,
    resources: Mapping[str, float] | None,
    object_store_memory: int | None,
    object_spilling_directory: str | None,
    preload: Sequence[str],
    runtime_env: Mapping[str, Any] | None,
    log_to_driver: bool,
    isolate_gpus: bool,
    scheduling_policy: Policy,
) -> Client:
    """Return the driver's client of a new local engine.

    Raises:
        ValueError: More GPUs are asked for than this process may use, there is no such directory,
            or ``runtime_env`` or the policy is wrong.
    """
    check_policy(scheduling_policy)
    inherited = environment(runtime_env)
    inherited.check_folders()
    pool = own_pool(num_cpus, num_gpus, resources)
    holds = HoldLog()
    reader = Reader(holds)
    engine = Engine(
        pool,
        holds=holds,
        reader=reader,
        preload=list(preload),
        store_bytes=object_store_memory,
        spill_directory=object_spilling_directory,
        log_to_driver=log_to_driver,
        isolate_gpus=isolate_gpus,
        policy=scheduling_policy,
    )
    client = Client(
        engine,
        process=DRIVER,
        holds=holds,
        reader=reader,
        totals=[dict(pool.totals)],
        context=driver_context(engine.node.machines[0].about.node_id),
        environment=inherited,
    )
    engine.on_take_back(client.writer.take)
    return client


def own_pool(
    num_cpus: float | None, num_gpus: int | None, resources: Mapping[str, float] | None
) -> Pool:
    """Return what this machine hands out; None is all this process may use.

    Raises:
        ValueError: More GPUs are asked for than this process may use.
    """
    gpus = inherited_gpus(os.environ)
    if num_gpus is not None and num_gpus > len(gpus):
        if gpus or "CUDA_VISIBLE_DEVICES" in os.environ:
            raise ValueError(
                f"num_gpus={num_gpus} but this process may use {len(gpus)} ({gpus}); ask for that "
                f"many or change CUDA_VISIBLE_DEVICES"
            )
        gpus = [str(index) for index in range(num_gpus)]  # no driver listing: take the word for it
    gpus = gpus if num_gpus is None else gpus[:num_gpus]
    cpus = num_cpus if num_cpus is not None else len(os.sched_getaffinity(0))
    amounts = dict(demand(num_cpus=cpus, resources=resources))
    slots = max(_MIN_TASK_PROCESSES, int(4 * cpus))
    return Pool({**amounts, SLOT: slots * UNIT}, gpus)
