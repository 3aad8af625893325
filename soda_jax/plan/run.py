"""`soda plan`: the step of a config on a topology, compiled or estimated."""

import json
import os
from typing import Any

from soda_jax.errors import UserError
from soda_jax.hardware import chip_of
from soda_jax.plan.topologies import Topology, tpu_devices
from soda_jax.schema import RunConfig, run_config, to_dict
from soda_jax.tokens.vocabulary import VocabularyLayout


def compile_for_tpu_without_one() -> None:
    """Sets the environment of this process for the TPU compiler; before the first use of jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at once disturb nobody
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any that it knows: the topology is named when it compiles
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def layout_of(data: str | None) -> VocabularyLayout:
    """The vocabulary of a data set, SODA's without one."""
    if data is None:
        return VocabularyLayout.soda()
    from soda_jax.data.format.manifest import Manifest

    return Manifest.load(data).layout


class Planner:
    """Makes plans of one config on one topology.

    Attributes:
      config: as given.
      topology: the machines.
      estimates: whether figures are estimated, because nothing can be compiled or it was asked for.
    """

    def __init__(
        self,
        config: RunConfig,
        layout: VocabularyLayout,
        topology: Topology,
        price: float | None,
        estimate: bool,
    ):
        """Takes a `VocabularyLayout`, the price of a chip hour, and whether to compile nothing."""
        self.config, self.topology = run_config(config), topology
        self._layout, self._price = layout, price
        self._devices = None if estimate else self._find_devices()
        self.estimates = self._devices is None

    def _find_devices(self) -> Any:
        if self.topology.is_tpu:
            return tpu_devices(self.topology)
        import jax

        here = [device for device in jax.devices() if device.platform == "gpu"]
        same = [d for d in here if chip_of(d.device_kind) is self.topology.chip]
        return same[: self.topology.devices] if len(same) >= self.topology.devices else None

    def make(self, config: RunConfig, estimate: bool = False) -> Any:
        """The `Outcome` of a config; UserError or DoesNotFitError where there is none."""
        from soda_jax.model import VocabularyBlocks, decoder_config
        from soda_jax.model.loss import chunk_tokens
        from soda_jax.plan.compiled import compile_step
        from soda_jax.plan.estimate import estimate_step
        from soda_jax.plan.outcome import Outcome
        from soda_jax.train.program import check_attention, check_sizes

        config = run_config(config)
        layout = self._layout
        blocks = VocabularyBlocks.of(layout)
        decoder = decoder_config(config.model, blocks)
        mesh = _mesh_sizes(config, self.topology)
        platform = self.topology.platform
        check_sizes(config, mesh, platform)
        check_attention(config, self.topology.chip)
        common: dict[str, Any] = {
            "topology": self.topology,
            "mesh": mesh,
            "settings": {
                "accumulate": config.gradient_accumulation,
                "remat": config.model.remat,
                "attention": config.model.attention,
                "loss chunk": chunk_tokens(config.loss_chunk, platform),
            },
            "decoder": decoder,
            "steps": config.steps,
            "batch": config.batch_size,
            "sequence": config.data.sequence_length,
            "price": self._price,
        }
        if self._devices is None or estimate:
            memory, costs = estimate_step(config, decoder, mesh, platform)
            why = "estimated by arithmetic, nothing was compiled"
            return Outcome(memory=memory, costs=costs, source=why, **common)
        step = compile_step(config, layout, self._devices)
        kind = step.program.mesh.devices.flat[0].device_kind
        return Outcome(
            memory=step.memory,
            costs=step.costs,
            source=f"compiled for {kind} in {step.seconds:.0f} s",
            compile_seconds=step.seconds,
            xla_flops=step.xla_flops,
            xla_bytes=step.xla_bytes,
            **common,
        )


def show(planner: Planner, as_json: bool) -> int:
    """Prints the plan of the config as it is; 0 if it fits, else 1."""
    from soda_jax.plan.compiled import DoesNotFitError
    from soda_jax.plan.page import page

    try:
        outcome = planner.make(planner.config)
    except DoesNotFitError as error:
        if as_json:
            print(json.dumps({"topology": str(planner.topology), "fits": False, "why": str(error)}))
        else:
            print(f"{planner.topology}: DOES NOT FIT: {error}; try --search")
        return 1
    print(json.dumps(outcome.to_json()) if as_json else page(outcome))
    return 0 if outcome.fits else 1


def _mesh_sizes(config: RunConfig, topology: Topology) -> dict[str, int]:
    from soda_jax.parallel.mesh import mesh_sizes

    domains = topology.domains
    sizes = mesh_sizes(to_dict(config.mesh), topology.devices, domains, config.model.hidden_size)
    if topology.is_tpu and sizes["dcn"] != domains:
        raise UserError(
            f"mesh.dcn={sizes['dcn']}, but there are {domains} slices, which no other axis may cross: "
            "set --config.mesh.dcn=-1"
        )
    return sizes
