"""`soda plan --search`: which mesh, micro-batch and remat is quickest of those that fit.

The global batch stays the config's, which is part of the recipe; a device's micro-batch varies through
`accumulate`. All candidates are estimated, and the compiler is asked only about the best.
"""

import dataclasses
import heapq
import itertools
import json
from collections.abc import Iterator
from typing import Any

from soda_jax.errors import UserError
from soda_jax.hardware import GIB
from soda_jax.parallel.mesh import TILE
from soda_jax.plan.compiled import DoesNotFitError
from soda_jax.plan.page import mesh_name, table
from soda_jax.plan.run import Planner
from soda_jax.plan.topologies import Topology
from soda_jax.schema import RunConfig, to_dict

REMAT = ("full", "attention", "dots", "offload", "none")
SPLITS = (1, 2, 4, 8)  # of heads and of the sequence
# A candidate whose estimate is this multiple of the memory is not compiled.
HOPELESS = 1.5


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A config and its estimate.

    Attributes:
      config: with mesh, accumulation and remat chosen.
      guess: `Outcome` by arithmetic.
    """

    config: RunConfig
    guess: Any

    @property
    def remat(self) -> str:
        """What the backward pass computes again."""
        return self.config.model.remat

    @property
    def order(self) -> tuple[Any, ...]:
        """Least is first. What the estimate sees no room for comes last, the smallest of it first."""
        guess = self.guess
        return (False, *guess.rank) if guess.fits else (True, guess.memory.total, *guess.rank)

    @property
    def name(self) -> str:
        """For a line of text."""
        return (
            f"{mesh_name(self.guess.mesh)}, {self.guess.micro_batch[0]:g} windows a device, "
            f"accumulate {self.config.gradient_accumulation}, remat {self.remat}"
        )


def search(planner: Planner, count: int, as_json: bool) -> int:
    """Compiles at most `count` candidates; prints what fits, best first. 0 if anything does, else 1.

    Raises:
      UserError: if the batch cannot be split over the devices, or no candidate is a config that can run.
    """
    notes = [_headline(planner)]
    families = _families(planner)
    notes += _narrow(planner)
    if not families:
        room = planner.topology.memory / GIB
        notes.append(
            f"does not fit: no mesh and remat comes near the {room:.2f} GiB of a device; use more chips"
        )
    found, failed = _best(planner, families, count)
    found.sort(key=lambda one: one.rank)
    if as_json:
        plans = [one.to_json() for one in found]
        print(json.dumps({"plans": plans, "does_not_fit": failed, "notes": notes}))
    else:
        print("\n".join([*notes, *(["", table(found, failed)] if families else [])]))
    return 0 if found else 1


def candidates(config: RunConfig, topology: Topology) -> Iterator[RunConfig]:
    """Configs with other meshes, remat and accumulation that the batch and the model allow.

    No fsdp leaves a device less than a tile of columns, which the compiler would pad, but the config's own.
    """
    within = topology.devices // topology.slices
    own = {name: max(1, size) for name, size in to_dict(config.mesh).items()}
    divisors = [n for n in range(1, within + 1) if within % n == 0]
    tensors = sorted({*SPLITS, own["tensor"]})
    sequences = [n for n in sorted({*SPLITS, own["sequence"]}) if _splits(config, topology, n)]
    for fsdp, tensor, sequence in itertools.product(divisors, tensors, sequences):
        data, rest = divmod(within, fsdp * tensor * sequence)
        narrow = fsdp not in (1, config.mesh.fsdp) and config.model.hidden_size // fsdp < TILE
        if rest or narrow or config.model.hidden_size % fsdp or config.model.num_kv_heads % tensor:
            continue
        windows, rest = divmod(config.batch_size, topology.slices * data * fsdp)
        if rest:
            continue
        for accumulate, remat in itertools.product(
            _divisions(windows, config.gradient_accumulation), REMAT
        ):
            mesh = dataclasses.replace(
                config.mesh,
                dcn=topology.slices,
                data=data,
                fsdp=fsdp,
                sequence=sequence,
                tensor=tensor,
            )
            model = dataclasses.replace(config.model, remat=remat)
            yield dataclasses.replace(
                config, mesh=mesh, model=model, gradient_accumulation=accumulate
            )


def _divisions(windows: int, own: int) -> list[int]:
    """Numbers of micro-batches for the windows of a device: powers of two, and the config's."""
    doubled = itertools.takewhile(lambda n: n <= windows, (2**n for n in itertools.count()))
    return [n for n in sorted({*doubled, own}) if n >= 1 and windows % n == 0]


def _splits(config: RunConfig, topology: Topology, parts: int) -> bool:
    """Whether the attention of the platform takes the sequence in so many parts."""
    from soda_jax.model.attention import backend_for

    length = config.data.sequence_length
    backend = backend_for(config.model.attention, topology.platform)
    tile = 128 if backend == "splash" else 1  # see model/attention
    return length % (parts * tile) == 0 and (parts == 1 or backend != "triton")


def _headline(planner: Planner) -> str:
    config, topology = planner.config, planner.topology
    return (
        f"{topology}, {topology.size}; {config.batch_size:,} × "
        f"{config.data.sequence_length:,} tokens a step, as in the config"
    )


def _narrow(planner: Planner) -> list[str]:
    """A line where the batch has no equal share of windows for every device."""
    config, devices = planner.config, planner.topology.devices
    if config.batch_size % devices == 0:
        return []
    return [
        f"batch_size {config.batch_size} is not a multiple of {devices}: only meshes that also split "
        "the sequence or the heads were tried"
    ]


def _families(planner: Planner) -> list[list[Candidate]]:
    """Estimated candidates, those of one mesh and remat together, the most promising first.

    Raises:
      UserError: if no candidate splits the batch, or none is a config that could run.
    """
    families: dict[tuple[str, str], list[Candidate]] = {}
    tried, estimated, refused = 0, 0, None
    for config in candidates(planner.config, planner.topology):
        tried += 1
        try:
            one = Candidate(config, planner.make(config, estimate=True))
        except UserError as error:  # this mesh is none for the config
            refused = error
            continue
        estimated += 1
        if one.guess.memory.total < HOPELESS * planner.topology.memory:
            families.setdefault((mesh_name(one.guess.mesh), one.remat), []).append(one)
    if not tried:
        raise UserError(
            f"batch_size {planner.config.batch_size} cannot be split over the "
            f"{planner.topology.devices} devices of {planner.topology}, not even with the sequence and the "
            "heads split: use a number of chips that divides it, or change --config.batch_size"
        )
    if not estimated and refused is not None:
        raise refused
    for family in families.values():
        family.sort(key=lambda one: one.order)
    return list(families.values())


def _best(planner: Planner, families: list[list[Candidate]], count: int) -> Any:
    """(outcomes that fit, why others do not) of at most `count` compiled candidates.

    Of a mesh and remat only the quickest micro-batch is compiled, and smaller ones only if it does not
    fit. How far the estimate of a remat was off is kept, and what would then not fit is passed over.
    """
    from soda_jax.progress import progress

    room = planner.topology.memory
    off: dict[str, float] = {}
    queue = [(family[0].order, number) for number, family in enumerate(families)]
    heapq.heapify(queue)
    found: list[Any] = []
    failed: list[tuple[str, str]] = []
    with progress("plans", min(count, len(families))) as bar:
        while queue and len(found) + len(failed) < count:
            _, number = heapq.heappop(queue)
            family = families[number]
            one = family.pop(0)
            needed = one.guess.memory.total * off.get(one.remat, 0.0)  # 0: not known
            if needed <= room:
                outcome, why, needed = _compile(planner, one)
                bar.advance(note=one.name)
                if needed:
                    off[one.remat] = needed / one.guess.memory.total
                if outcome is not None:
                    found.append(outcome)
                else:
                    failed.append((one.name, why))
            if needed > room and family:
                heapq.heappush(queue, (family[0].order, number))
    return found, failed


def _compile(planner: Planner, one: Candidate) -> tuple[Any, str, float]:
    """(outcome if it fits, else why not, the memory that it needs or 0 if that is not the reason)."""
    try:
        outcome = planner.make(one.config)
    except DoesNotFitError as error:
        return None, str(error), error.needed
    except UserError as error:
        return None, str(error), 0.0
    needed = outcome.memory.total
    return (outcome, "", needed) if outcome.fits else (None, f"{needed / GIB:.1f} GiB", needed)
