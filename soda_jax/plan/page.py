"""A plan as text."""

from collections.abc import Mapping, Sequence

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
    value, chip = outcome.to_json(), outcome.topology.chip
    settings = ", ".join(f"{name} {setting}" for name, setting in outcome.settings.items())
    lines = [
        f"{outcome.topology}, {outcome.topology.chips} chips; {outcome.source}",
        f"mesh {mesh_name(outcome.mesh)}; {settings}",
        "",
        f"parameters      {outcome.decoder.parameters:,} ({outcome.decoder.non_embedding_parameters:,} "
        "without embedding and head)",
        f"a step          {outcome.batch:,} × {outcome.sequence:,} = {outcome.tokens:,} tokens",
        "",
        f"memory of a chip, of {chip.memory / 1e9:.1f} GB",
    ]
    for key, told in _KINDS:
        lines.append(f"  {getattr(outcome.memory, key) / 1e9:8.2f} GB  {told}")
    verdict = "fits" if outcome.fits else "DOES NOT FIT"
    lines.append(f"  {outcome.memory.total / 1e9:8.2f} GB  together: {verdict}")
    if outcome.memory.host:
        lines.append(f"  {outcome.memory.host / 1e9:8.2f} GB  in the memory of the host")
    counted = outcome.flops * outcome.topology.chips
    lines += [
        "",
        f"FLOPs           {outcome.model_flops:.3g} of the model, {counted:.3g} computed "
        f"({outcome.costs.kernel_flops * outcome.topology.chips:.3g} in kernels)",
    ]
    if outcome.xla_flops:
        lines.append(
            f"                with each loop once: {outcome.costs.flops_once:.4g} by our count, "
            f"{outcome.xla_flops:.4g} by XLA's, a chip"
        )
    if outcome.costs.open_loops:
        lines.append(
            f"                {outcome.costs.open_loops} loops of unknown length, counted once"
        )
    theirs = (
        f" ({outcome.xla_bytes / 1e9:,.1f} by XLA, each loop once)" if outcome.xla_bytes else ""
    )
    lines.append(f"memory traffic  {outcome.costs.bytes / 1e9:,.1f} GB a chip{theirs}")
    if outcome.costs.host_bytes:
        lines.append(
            f"host traffic    {outcome.costs.host_bytes / 1e9:,.2f} GB a chip, there and back"
        )
    for row in value["collectives"]:
        lines.append(
            f"{row['kind']:15} {row['bytes'] / 1e9:,.2f} GB a chip over {'+'.join(row['axes'])} "
            f"({row['devices']} chips, {row['times']:,} times)"
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
        "| mesh | micro-batch of a chip | accumulate | remat | memory, GB | step, ms | limited by "
        "| MFU at most | days |",
        "|---|---:|---:|---|---:|---:|---|---:|---:|",
    ]
    for one in outcomes:
        bounds, (windows, positions) = one.bounds(), one.micro_batch
        rows.append(
            f"| {mesh_name(one.mesh)} | {windows:g} × {positions:,.0f} | {one.settings['accumulate']} "
            f"| {one.settings['remat']} | {one.memory.total / 1e9:.1f} | {one.seconds * 1e3:,.0f} "
            f"| {max(bounds, key=bounds.__getitem__)} | {100 * one.mfu_bound:.1f}% "
            f"| {one.steps * one.seconds / 86_400:.1f} |"
        )
    rows += [""] * bool(failed) + [f"does not fit: {what}: {why}" for what, why in failed]
    return "\n".join(rows)


def mesh_name(mesh: Mapping[str, int]) -> str:
    """The axes that have more than one device."""
    return " × ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "1 chip"
