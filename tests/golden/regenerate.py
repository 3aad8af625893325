"""Golden files: every config as flat lines, a loss curve, and the generated tables of the docs.

    make golden        # or: python tests/golden/regenerate.py

Run it after a change that is meant to alter a config or the numbers of training, look at the
difference in git, and say in the commit why it is right.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIGS, CURVE, SIZES = HERE / "configs", HERE / "loss_curve.json", ROOT / "docs" / "sizes.md"
SETTINGS, ARCHITECTURE = ROOT / "docs" / "config.md", ROOT / "docs" / "architecture.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- table: make golden -->\n", "<!-- end of table -->\n"
STEPS = 20
COLUMNS = ("loss/all", "loss/text", "loss/semantic", "loss/acoustic_1", "loss/marker")


def config_names() -> list[str]:
    """Names of all experiments in `configs/`."""
    files = (ROOT / "configs").glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "base"))


def load(name: str) -> Any:
    """The ConfigDict of an experiment."""
    return importlib.import_module(f"soda_jax.configs.{name}").get_config()


def flat(config: Any) -> str:
    """One sorted line `key = value` for each leaf of a config, values as JSON."""
    lines: list[str] = []

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key in node:
                walk(f"{prefix}.{key}" if prefix else key, node[key])
        else:
            lines.append(f"{prefix} = {json.dumps(node)}\n")

    walk("", config.to_dict())
    return "".join(sorted(lines))


def curve_config(folder: Path) -> Any:
    """Twenty steps of the suite's recipe on a model of a few thousand parameters."""
    from ml_collections import ConfigDict

    from soda_jax.configs import base

    config = base.default()
    config.steps, config.batch_size, config.gradient_accumulation = STEPS, 16, 2
    config.model.update(
        num_layers=2, hidden_size=32, intermediate_size=64, num_heads=4, num_kv_heads=2, head_dim=8
    )
    config.model.compute_dtype = "float32"
    config.data.sequence_length = 64
    config.data.sources = ConfigDict({"toy": base.source(str(folder), 1.0)})
    config.loss_chunk = 256
    config.mesh.update(data=4, fsdp=2)
    config.checkpoint.update(every_steps=0, every_minutes=0.0)
    config.log.tensorboard = False
    return config


def write_curve_data(folder: Path) -> None:
    """A data set of 200 skewed random documents: small ids and codes are frequent."""
    from soda_jax.data.format.manifest import Manifest
    from soda_jax.data.format.shards import ShardWriter
    from soda_jax.data.format.splitting import split_document
    from soda_jax.tokens.documents import Utterance
    from soda_jax.tokens.vocabulary import VocabularyLayout

    layout = VocabularyLayout(60, (0, 1, 2), 1, 2, (32, 16, 16))
    # RandomState's stream is frozen for ever, that of default_rng is not (NumPy's NEP 19).
    random = np.random.RandomState(2602)
    writer = ShardWriter(folder / "train" / "shard-00000.array_record", layout)
    for number in range(200):
        text = 3 + (57 * random.rand(8) ** 2).astype(np.int32)
        codes = (random.rand(10, 3) ** 2 * layout.codebook_sizes).astype(np.uint16)
        for record in split_document(f"toy/{number}", [Utterance("x" * 8, text, codes)], layout):
            writer.write(record)
    Manifest(
        kind="speech",
        layout=layout,
        codec={"name": "toy", "fingerprint": "toy", "sample_rate": 16_000, "frame_rate": 12.5},
        tokenizer_fingerprint="toy",
        splits={"train": (writer.close(),)},
    ).save(folder)


def loss_curve() -> dict[str, list[float]]:
    """Trains on eight simulated devices and returns the curves, `STEPS` values each."""
    import jax

    from soda_jax.train.loop import train
    from soda_jax.train.metric_logs import read_metrics

    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision("highest"):
        data, workdir = Path(folder) / "data", Path(folder) / "run"
        write_curve_data(data)
        train(curve_config(data), workdir)
        rows = read_metrics(workdir / "metrics.jsonl")
    return {name: [row[name] for row in rows] for name in (*COLUMNS, "gradient_norm")}


def sizes_table() -> str:
    """The table of all configs in Markdown."""
    from soda_jax.model import VocabularyBlocks, decoder_config
    from soda_jax.tokens.vocabulary import VocabularyLayout

    soda = VocabularyLayout.soda()
    blocks = VocabularyBlocks.of(soda)
    head = (
        "config", "layers", "d", "ff", "heads/kv", "head_dim", "non-embedding", "total",
        "GFLOP a token", "state, GB", "batch × sequence × steps",
    )  # fmt: skip
    rows = [head, ("---",) + ("---:",) * (len(head) - 1)]
    # Variants with a head over legal ids have the same sizes; a plan decides those of a study.
    names = [
        name for name in config_names() if not name.endswith(("_legal", "isoflop", "_scaling"))
    ]
    configs = {name: load(name) for name in names}
    for name in sorted(configs, key=lambda name: configs[name].model.hidden_size):
        config = configs[name]
        m, length = config.model, config.data.sequence_length
        decoder = decoder_config(m.to_dict(), blocks)
        # Only the suite's configs name a vocabulary; elsewhere it comes with the data.
        known = name.startswith("soda_")
        rows.append(
            (
                f"`{name}`", f"{m.num_layers}", f"{m.hidden_size:,}", f"{m.intermediate_size:,}",
                f"{m.num_heads}/{m.num_kv_heads}", f"{m.head_dim}",
                f"{decoder.non_embedding_parameters:,}",
                f"{decoder.parameters:,}" if known else "–",
                f"{decoder.training_flops_per_token(length) / 1e9:.3g}" if known else "–",
                f"{12 * decoder.parameters / 1e9:.1f}" if known else "–",
                f"{config.batch_size} × {length:,} × {config.steps:,}",
            )
        )  # fmt: skip
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def settings_table() -> str:
    """Returns the reference of all settings of a run in Markdown, one table per group."""
    from soda_jax.schema import RunConfig
    from soda_jax.schema_fields import describe

    head = "| setting | default | allowed | meaning |\n|---|---|---|---|\n"
    parts = [head]
    for name, default, allowed, doc in describe(RunConfig):
        if not allowed:
            parts.append(f"\n## {name}\n\n{doc[0].upper()}{doc[1:]}.\n\n{head}")
            continue
        cells = (f"`{name}`", f"`{default}`" if default != "required" else default, allowed, doc)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def import_diagram() -> str:
    """Returns the imports between packages as a Mermaid graph, without edges that others imply."""
    import grimp

    graph = grimp.build_graph("soda_jax", "tokenize_pipeline")
    packages = sorted(
        {".".join(module.split(".")[:2]) for module in graph.modules if _is_package_part(module)}
        | {"tokenize_pipeline"}
    )
    imports = {
        package: {
            other
            for other in packages
            if other != package
            and graph.direct_import_exists(importer=package, imported=other, as_packages=True)
        }
        for package in packages
    }
    reached: dict[str, set[str]] = {}

    def reach(package: str) -> set[str]:
        if package not in reached:
            below = imports[package]
            reached[package] = below.union(*(reach(other) for other in below))
        return reached[package]

    lines = ["```mermaid", "graph TD"]
    for package in packages:
        implied = set().union(*(reach(other) for other in imports[package]))
        for other in sorted(imports[package] - implied):
            lines.append(f"    {_short(package)} --> {_short(other)}")
    return "\n".join([*lines, "```"]) + "\n"


def _is_package_part(module: str) -> bool:
    """Whether a module is in a folder of soda_jax; commands and single files are left out."""
    parts = module.split(".")
    return parts[0] == "soda_jax" and len(parts) > 2 and parts[1] not in ("commands", "configs")


def _short(package: str) -> str:
    return package.removeprefix("soda_jax.")


def with_table(text: str, table: str) -> str:
    """`text` with what stands between the two table comments replaced."""
    before, rest = text.split(TABLE_BEGINS)
    return before + TABLE_BEGINS + table + TABLE_ENDS + rest.split(TABLE_ENDS)[1]


def main() -> None:
    """Writes all golden files and removes the dumps of configs that are gone."""
    from soda_jax.files import write_atomic

    names = config_names()
    for old in CONFIGS.glob("*.txt"):
        if old.stem not in names:
            old.unlink()
    for name in names:
        write_atomic(CONFIGS / f"{name}.txt", flat(load(name)))
    tables = (
        (SIZES, sizes_table()),
        (SETTINGS, settings_table()),
        (ARCHITECTURE, import_diagram()),
    )
    for page, table in tables:
        write_atomic(page, with_table(page.read_text("utf-8"), table))
    curve = {
        name: [float(f"{value:.7g}") for value in values] for name, values in loss_curve().items()
    }
    write_atomic(CURVE, json.dumps(curve, indent=1) + "\n")
    print(
        f"wrote {len(names)} configs, {CURVE.name} and the generated parts of three docs pages",
        file=sys.stderr,
    )


if __name__ == "__main__":
    # As tests/conftest.py: they must stand before jax is imported.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
