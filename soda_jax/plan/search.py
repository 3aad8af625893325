"""`soda plan --search`: finds the fastest mesh, micro-batch and remat policy that fit.

The search does not change the global batch size, which is part of the recipe, but varies the
micro-batch per device with `gradient_accumulation`. All candidates are estimated, and only the best
are compiled.
"""

import dataclasses
import heapq
import itertools
import json
import math
from collections.abc import Iterator, Mapping

from soda_jax.errors import UserError
from soda_jax.hardware import GIB
from soda_jax.model.attention import backend_for
from soda_jax.model.remat import POLICIES
from soda_jax.parallel.mesh import TILE
from soda_jax.parallel.rules import MESH_AXES, ways
from soda_jax.plan.compiled import DoesNotFitError
from soda_jax.plan.outcome import Outcome, mesh_name, table
from soda_jax.plan.run import Planner
from soda_jax.plan.topologies import Topology
from soda_jax.progress import progress
from soda_jax.schema import RunConfig, to_dict

# Sizes to try for a mesh axis in addition to the size in the config. For axes that split `embed`,
# all divisors of the number of devices per slice are tried instead.
SPLITS = (1, 2, 4, 8)
# A candidate whose estimated memory exceeds the device memory by this factor is not compiled.
HOPELESS = 1.5


def search(planner: Planner, count: int, as_json: bool) -> int:
    """Compiles at most `count` candidates and prints those that fit; returns 0 if one fits, else 1.

    Raises:
      UserError: if no mesh can split the batch, or no candidate is a valid config.
    """
    config, topology = planner.config, planner.topology
    families = _families(planner)
    notes = [
        f"{topology}, {topology.size}; {config.batch_size:,} × "
        f"{config.data.sequence_length:,} tokens per step, as in the config"
    ]
    if config.batch_size % topology.devices:
        notes.append(
            f"batch_size {config.batch_size} is not a multiple of the {topology.devices} "
            "devices: only meshes that also split the sequence or the heads were tried"
        )
    if not families:
        notes.append(
            "does not fit: every mesh and remat policy needs far more than the "
            f"{topology.memory / GIB:.2f} GiB of a device; use more chips"
        )
    found, failed = _compile_best(planner, families, count)
    found.sort(key=lambda one: one.rank)
    if as_json:
        plans = [one.to_json() for one in found]
        print(json.dumps({"plans": plans, "does_not_fit": failed, "notes": notes}))
    else:
        print("\n".join([*notes, *(["", table(found, failed)] if families else [])]))
    return 0 if found else 1


def candidates(config: RunConfig, topology: Topology) -> Iterator[RunConfig]:
    """Yields variants of the config with every valid mesh, remat policy and gradient accumulation.

    dcn is the number of slices, and the size of data follows from the other axes. Shards of fewer
    than `TILE` columns, which the compiler would pad, are tried only if the config has them.
    """
    own = {name: max(1, size) for name, size in to_dict(config.mesh).items()}
    within = topology.devices // topology.slices
    divisors = [n for n in range(1, within + 1) if within % n == 0]
    sizes = {
        axis: divisors if "embed" in MESH_AXES[axis] else sorted({*SPLITS, own[axis]})
        for axis in own
        if axis != "data"
    }
    sizes["dcn"] = [topology.slices]
    for chosen in itertools.product(*sizes.values()):
        mesh = dict(zip(sizes, chosen, strict=True))
        mesh["data"], rest = divmod(topology.devices, math.prod(chosen))
        if rest or not _splits_model(config, topology, mesh, own):
            continue
        windows, rest = divmod(config.batch_size, ways(mesh, "batch"))
        if rest:
            continue
        divisions = _divisions(windows, config.gradient_accumulation)
        for accumulation, remat in itertools.product(divisions, POLICIES):
            yield dataclasses.replace(
                config,
                mesh=dataclasses.replace(config.mesh, **mesh),
                model=dataclasses.replace(config.model, remat=remat),
                gradient_accumulation=accumulation,
            )


def _splits_model(
    config: RunConfig, topology: Topology, mesh: Mapping[str, int], own: Mapping[str, int]
) -> bool:
    """Returns whether parameters, heads and sequence can be split over the mesh."""
    model, shards = config.model, ways(mesh, "embed")
    narrow = model.hidden_size // shards < TILE and shards not in (1, ways(own, "embed"))
    if narrow or model.hidden_size % shards or model.num_kv_heads % ways(mesh, "kv_heads"):
        return False
    parts = ways(mesh, "sequence")
    backend = backend_for(model.attention, topology.platform)
    tile = 128 if backend == "splash" else 1  # see model/attention
    return config.data.sequence_length % (parts * tile) == 0 and (parts == 1 or backend != "triton")


def _divisions(windows: int, own: int) -> list[int]:
    """Returns divisors of `windows` to try as gradient_accumulation: powers of two and `own`."""
    doubled = itertools.takewhile(lambda n: n <= windows, (2**n for n in itertools.count()))
    return [n for n in sorted({*doubled, own}) if n >= 1 and windows % n == 0]


def _families(planner: Planner) -> list[list[Outcome]]:
    """Estimates all candidates and groups them by mesh and remat policy.

    Each group is sorted by `_order`. Candidates that need more than `HOPELESS` times the memory of
    a device are dropped.

    Raises:
      UserError: if no mesh can split the batch, or no candidate is a valid config.
    """
    families: dict[tuple[str, str], list[Outcome]] = {}
    tried, estimated, refused = 0, 0, None
    for config in candidates(planner.config, planner.topology):
        tried += 1
        try:
            one = planner.make(config, estimate=True)
        except UserError as error:  # this mesh is invalid for the config
            refused = error
            continue
        estimated += 1
        if one.memory.total < HOPELESS * planner.topology.memory:
            families.setdefault((mesh_name(one.mesh), config.model.remat), []).append(one)
    if not tried:
        raise UserError(
            f"batch_size {planner.config.batch_size} cannot be split over the "
            f"{planner.topology.devices} devices of {planner.topology}, even if sequence and heads "
            "are split: use a number of devices that divides the batch size, or change "
            "--config.batch_size"
        )
    if not estimated and refused is not None:
        raise refused
    return [sorted(family, key=_order) for family in families.values()]


def _order(estimate: Outcome) -> tuple[float, ...]:
    """Returns a sort key: estimates that fit come first, by rank, then the others, by memory."""
    if estimate.fits:
        return (0.0, *estimate.rank)
    return (1.0, estimate.memory.total, *estimate.rank)


def _compile_best(
    planner: Planner, families: list[list[Outcome]], count: int
) -> tuple[list[Outcome], list[tuple[str, str]]]:
    """Compiles at most `count` candidates, the best estimates first.

    For each mesh and remat policy, the next micro-batch is compiled only if the previous one does
    not fit. The last ratio of compiled to estimated memory is kept for each remat policy, to skip
    candidates that would not fit.

    Returns:
      the candidates that fit, and (name, reason) of those that failed.
    """
    room = planner.topology.memory
    ratios: dict[str, float] = {}
    queue = [(_order(family[0]), number) for number, family in enumerate(families)]
    heapq.heapify(queue)
    found: list[Outcome] = []
    failed: list[tuple[str, str]] = []
    with progress("plans", min(count, len(families))) as bar:
        while queue and len(found) + len(failed) < count:
            _, number = heapq.heappop(queue)
            family = families[number]
            estimate = family.pop(0)
            remat, estimated = estimate.config.model.remat, estimate.memory.total
            needed = estimated * ratios.get(remat, 0.0)
            if needed <= room:
                needed, why = 0.0, ""
                try:
                    outcome = planner.make(estimate.config)
                    needed = outcome.memory.total
                    why = "" if outcome.fits else f"{needed / GIB:.1f} GiB"
                except DoesNotFitError as error:
                    needed, why = error.needed, str(error)
                except UserError as error:
                    why = str(error)
                bar.advance(note=_name(estimate))
                if needed:
                    ratios[remat] = needed / estimated
                if why:
                    failed.append((_name(estimate), why))
                else:
                    found.append(outcome)
            if needed > room and family:
                heapq.heappush(queue, (_order(family[0]), number))
    return found, failed


def _name(outcome: Outcome) -> str:
    """Returns mesh, micro-batch, accumulation and remat policy as one line."""
    config = outcome.config
    return (
        f"{mesh_name(outcome.mesh)}, {outcome.micro_batch[0]:g} windows per device, "
        f"accumulate {config.gradient_accumulation}, remat {config.model.remat}"
    )
