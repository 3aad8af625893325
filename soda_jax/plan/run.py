"""`soda plan`: compiles or estimates the training step of a config on a topology."""

import json
from typing import Any

import jax

from soda_jax.errors import UserError
from soda_jax.hardware import chip_of
from soda_jax.model import VocabularyBlocks, decoder_config
from soda_jax.parallel.mesh import mesh_sizes
from soda_jax.plan.compiled import DoesNotFitError, compile_step
from soda_jax.plan.estimate import estimate_step, head_rows
from soda_jax.plan.outcome import Outcome
from soda_jax.plan.topologies import Topology, tpu_devices
from soda_jax.schema import RunConfig, run_config, to_dict
from soda_jax.tokens.vocabulary import VocabularyLayout
from soda_jax.train.program import check_attention, check_sizes


class Planner:
    """Plans a config, and variants of this config, for one topology.

    Attributes:
      config: settings of the run.
      topology: the chips to plan for.
    """

    def __init__(
        self,
        config: RunConfig,
        layout: VocabularyLayout,
        topology: Topology,
        price: float | None,
        estimate: bool,
        text_share: float = 0.1,
    ):
        """Finds the devices to compile for.

        Args:
          config: settings of the run.
          layout: vocabulary layout of the data sets.
          topology: the chips to plan for.
          price: price per chip hour; None if unknown.
          estimate: whether to estimate instead of compiling. Steps on GPUs that this machine does
            not have are always estimated.
          text_share: share of the positions that are normalized over text, for `model.head` = "legal".
        """
        self._text_share = text_share
        self.config, self.topology = run_config(config), topology
        self._layout, self._price = layout, price
        self._devices = None if estimate else self._find_devices()

    def _find_devices(self) -> Any:
        if self.topology.is_tpu:
            return tpu_devices(self.topology)
        gpus = [device for device in jax.devices() if device.platform == "gpu"]
        same = [gpu for gpu in gpus if chip_of(gpu.device_kind) is self.topology.chip]
        return same[: self.topology.devices] if len(same) >= self.topology.devices else None

    def make(self, config: RunConfig, estimate: bool = False) -> Outcome:
        """Returns the plan of a config.

        The step is compiled, or estimated if `estimate` is set or there are no devices to compile
        for.

        Raises:
          DoesNotFitError: if the compiler finds that the step needs too much memory.
          UserError: if the config is invalid or does not fit the topology.
        """
        config = run_config(config)
        decoder = decoder_config(config.model, VocabularyBlocks.of(self._layout))
        mesh = self._mesh_sizes(config)
        check_sizes(config, mesh, self.topology.platform)
        check_attention(config, self.topology.chip)
        if self._devices is None or estimate:
            step = estimate_step(config, decoder, mesh, self.topology.platform, self._text_share)
        else:
            step = compile_step(config, self._layout, self._devices, self._text_share)
        return Outcome(
            **vars(step),
            topology=self.topology,
            mesh=mesh,
            config=config,
            decoder=decoder,
            price=self._price,
            head_rows=head_rows(config, decoder, self._text_share),
        )

    def _mesh_sizes(self, config: RunConfig) -> dict[str, int]:
        domains, devices = self.topology.domains, self.topology.devices
        sizes = mesh_sizes(to_dict(config.mesh), devices, domains, config.model.hidden_size)
        if self.topology.is_tpu and sizes["dcn"] != domains:
            raise UserError(
                f"mesh.dcn={sizes['dcn']}, but there are {domains} slices and only dcn may cross "
                "slices: set --config.mesh.dcn=-1"
            )
        return sizes


def show(planner: Planner, as_json: bool) -> int:
    """Prints the plan of the config; returns 0 if the step fits, else 1."""
    try:
        outcome = planner.make(planner.config)
    except DoesNotFitError as error:
        if as_json:
            print(json.dumps({"topology": str(planner.topology), "fits": False, "why": str(error)}))
        else:
            print(f"{planner.topology}: DOES NOT FIT: {error}; try --search")
        return 1
    print(json.dumps(outcome.to_json()) if as_json else outcome)
    return 0 if outcome.fits else 1
