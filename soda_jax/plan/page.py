"""A plan as text."""

from collections.abc import Mapping, Sequence

from soda_jax.hardware import GIB
from soda_jax.plan.outcome import Outcome

_KINDS = (
    ("parameters", "parameters, f32"),
    ("optimizer", "moments of the optimizer, f32"),
    ("batch", "batch"),
    ("temporaries", "temporaries: activations, gradients, gathered weights"),
    ("code", "program"),
)


def page(outcome: Outcome) -> str:
    """All figures of one step, a line each."""
    value, topology = outcome.to_json(), outcome.topology
    settings = ", ".join(f"{name} {setting}" for name, setting in outcome.settings.items())
    lines = [
        f"{topology}, {topology.size}; {outcome.source}",
        f"mesh {mesh_name(outcome.mesh)}; {settings}",
        "",
        f"parameters      {outcome.decoder.parameters:,} ({outcome.decoder.non_embedding_parameters:,} "
        "without embedding and head)",
        f"a step          {outcome.batch:,} × {outcome.sequence:,} = {outcome.tokens:,} tokens",
        "",
        f"memory of a device, of {topology.memory / GIB:.2f} GiB that a program can use",
    ]
    for key, kind in _KINDS:
        lines.append(f"  {getattr(outcome.memory, key) / GIB:8.2f} GiB  {kind}")
    verdict = "fits" if outcome.fits else "DOES NOT FIT"
    lines.append(f"  {outcome.memory.total / GIB:8.2f} GiB  together: {verdict}")
    if outcome.memory.host:
        lines.append(f"  {outcome.memory.host / GIB:8.2f} GiB  in the memory of the host")
    counted = outcome.flops * topology.devices
    lines += [
        "",
        f"FLOPs           {outcome.model_flops:.3g} of the model, {counted:.3g} computed "
        f"({outcome.costs.kernel_flops * topology.devices:.3g} in kernels)",
    ]
    if outcome.xla_flops:
        lines.append(
            f"                with each loop once: {outcome.costs.flops_once:.4g} by our count, "
            f"{outcome.xla_flops:.4g} by XLA's, a device"
        )
    if outcome.costs.open_loops:
        lines.append(
            f"                {outcome.costs.open_loops} loops of unknown length, counted once"
        )
    theirs = (
        f" ({outcome.xla_bytes / GIB:,.1f} by XLA, each loop once)" if outcome.xla_bytes else ""
    )
    lines.append(f"memory traffic  {outcome.costs.bytes / GIB:,.1f} GiB a device{theirs}")
    if outcome.costs.host_bytes:
        lines.append(
            f"host traffic    {outcome.costs.host_bytes / GIB:,.2f} GiB a device, both ways"
        )
    for row in value["collectives"]:
        lines.append(
            f"{row['kind']:15} {row['bytes'] / GIB:,.2f} GiB a device over {'+'.join(row['axes'])} "
            f"({row['devices']} devices, {row['times']:,} times)"
        )
    bounds = ", ".join(
        f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in outcome.bounds().items()
    )
    lines += [
        "",
        f"bounds          {bounds}",
        f"roofline        {outcome.seconds * 1e3:,.0f} ms a step: MFU at most {100 * outcome.mfu_bound:.1f}%, "
        f"{value['tokens_per_second']:,.0f} tokens/s",
        f"the run         {outcome.steps:,} steps, {value['tokens'] / 1e9:,.1f}B tokens: at least "
        f"{value['days']:.1f} days, {value['chip_hours']:,.0f} chip hours",
    ]
    if value["cost"] is not None:
        lines.append(
            f"cost            at least {value['cost']:,.0f} at {outcome.price} a chip and hour"
        )
    return "\n".join(lines)


def table(outcomes: Sequence[Outcome], failed: Sequence[tuple[str, str]]) -> str:
    """The candidates of a search that fit, best first, and why the others do not."""
    rows = [
        "| mesh | micro-batch of a device | accumulate | remat | memory, GiB | step, ms | limited by "
        "| MFU at most | days |",
        "|---|---:|---:|---|---:|---:|---|---:|---:|",
    ]
    for one in outcomes:
        bounds, (windows, positions) = one.bounds(), one.micro_batch
        rows.append(
            f"| {mesh_name(one.mesh)} | {windows:g} × {positions:,.0f} | {one.settings['accumulate']} "
            f"| {one.settings['remat']} | {one.memory.total / GIB:.1f} | {one.seconds * 1e3:,.0f} "
            f"| {max(bounds, key=bounds.__getitem__)} | {100 * one.mfu_bound:.1f}% "
            f"| {one.steps * one.seconds / 86_400:.1f} |"
        )
    rows += [""] * bool(failed) + [f"does not fit: {what}: {why}" for what, why in failed]
    return "\n".join(rows)


def mesh_name(mesh: Mapping[str, int]) -> str:
    """The axes that have more than one device."""
    return " × ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "1 device"
