"""The head over legal ids: the loss of a plain masked softmax in f64, on any mesh, for any document."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_toys import KilledError, Watcher, assert_same_run, kill, rows_of
from train_toys import LAYOUT

from soda_jax.data.dataset import make_dataset
from soda_jax.errors import UserError
from soda_jax.evaluate.loss import LossHook
from soda_jax.model import VocabularyBlocks
from soda_jax.model.legal import legal_sets
from soda_jax.model.loss import LossSettings, legal_cross_entropy, linear_cross_entropy
from soda_jax.model.placement import OneDevice
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.schema import ModelConfig
from soda_jax.tokens.partition import joint_sets, partition
from soda_jax.train.loop import DONE, train
from soda_jax.train.program import sets_of_head

ROWS, LENGTH, WIDTH, Z_WEIGHT, EVERY = 16, 48, 16, 0.05, 5
VOCABULARY = VocabularyBlocks.of(LAYOUT)
VIEWS = [
    {"order": "text_first"},
    {"order": "audio_first"},
    {"order": "text_first", "codebooks": 2},
    {"order": "audio_first", "codebooks": 1},
    {"composition": "S+A"},
    {"composition": "S+A", "codebooks": 2},
    {"composition": "S"},
    {"composition": "text"},
]
MESHES = [
    None,
    {"data": 8},
    {"fsdp": 8},
    {"sequence": 8},
    {"tensor": 2},
    {"tensor": 4, "data": 2},
    {"sequence": 2, "fsdp": 2, "tensor": 2},
]


@pytest.fixture(scope="module")
def mixture(datasets):
    sources = {
        f"view{number}": {"path": str(datasets / "speech"), **view}
        for number, view in enumerate(VIEWS)
    }
    sources["text"] = {"path": str(datasets / "text"), "composition": "text"}
    config = {"sequence_length": LENGTH, "sources": sources, "seed": 5}
    return make_dataset(config, legal_sets=True)


@pytest.fixture(scope="module")
def sets(mixture):
    return legal_sets(VOCABULARY, *joint_sets(LAYOUT, mixture.codebooks))


@pytest.fixture(scope="module")
def batch(mixture):
    """Windows of all views; a fifth of the targets are masked."""
    found = mixture.batch(3, range(ROWS))
    assert len(set(found.source.tolist())) >= 7
    found.loss_mask[:] *= np.random.default_rng(2).random((ROWS, LENGTH)) < 0.8
    return found


@functools.cache
def weights_of_model():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    shapes = (1, VOCABULARY.padded_first), (LAYOUT.codebooks, VOCABULARY.group_rows)
    return hidden, tuple(rng.normal(size=(*s, WIDTH)).astype(np.float32) for s in shapes)


def targets_of(batch):
    return VOCABULARY.row_of_id[np.roll(batch.tokens, -1, axis=1)]


def plain(batch, z_weight=Z_WEIGHT, every=EVERY):
    """((total, (nll, log Z, −log P(legal set))), gradients) in f64, from all logits at once."""
    every_set = partition(LAYOUT)
    legal = np.zeros((256, VOCABULARY.rows), bool)
    for number in range(len(every_set.sets)):
        legal[number, VOCABULARY.row_of_id[every_set.legal_ids(number)]] = True
    weights = batch.loss_mask
    sampled = (np.arange(LENGTH) - batch.full_offset[:, None]) % every == 0 if every else 0
    targets = targets_of(batch)

    def total(hidden, blocks):
        flat = jnp.concatenate([block.reshape(-1, WIDTH) for block in blocks])
        logits = jnp.einsum("bsd,vd->bsv", hidden, flat)

        def log_z(mask):
            return jax.nn.logsumexp(jnp.where(mask, logits, -1e300), axis=-1)

        within = jnp.where(weights > 0, log_z(legal[batch.legal_set]), 0.0)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nll = jnp.where(weights > 0, within - picked, 0.0)
        outside = weights * sampled * (log_z(VOCABULARY.valid_rows) - within)
        return jnp.sum(weights * (nll + z_weight * within**2) + outside), (nll, within, outside)

    hidden, blocks = weights_of_model()
    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (hidden, blocks))
        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*arguments)


def of_head(batch, sets, axes, chunk=7, z_weight=Z_WEIGHT, every=EVERY, dtype=np.float32):
    count = math.prod(axes.values()) if axes else 1
    placement = OnMesh(make_mesh(axes, jax.devices()[:count])) if axes else OneDevice()
    settings = LossSettings(VOCABULARY, z_weight, chunk, placement, sets, every)
    fields = (targets_of(batch), batch.loss_mask, batch.legal_set, batch.full_offset)

    def total(hidden, blocks):
        hidden = hidden.astype(dtype)
        total, nll, log_z, outside = legal_cross_entropy(settings, hidden, blocks, *fields)
        return 3.0 * total, (nll, log_z, outside.nll if every else jnp.zeros_like(nll))

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*weights_of_model())


def assert_same(found, wanted):
    ((total, outputs), gradients), ((exact, expected), slopes) = found, wanted
    assert float(total) == pytest.approx(3.0 * float(exact), rel=1e-6)
    for name, a, b in zip(("nll", "log Z", "outside"), outputs, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, 3.0 * np.asarray(b), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_loss_and_gradients_are_those_of_a_masked_softmax_on_any_mesh(batch, sets, axes):
    assert_same(of_head(batch, sets, axes), plain(batch))


@pytest.mark.parametrize("start", [16, 48, 400])
def test_loss_and_gradients_are_those_of_a_masked_softmax_in_other_windows(mixture, sets, start):
    batch = mixture.batch(start, range(ROWS))
    assert_same(of_head(batch, sets, None), plain(batch))


@pytest.mark.parametrize("every,z_weight,chunk", [(0, 0.0, 7), (0, 0.1, 1000), (1, 0.0, 1)])
def test_the_terms_are_independent(batch, sets, every, z_weight, chunk):
    assert_same(of_head(batch, sets, None, chunk, z_weight, every), plain(batch, z_weight, every))


@pytest.mark.parametrize("axes", [None, {"data": 8}, {"sequence": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("head", ["full", "legal"])
def test_bf16_runs_on_any_mesh_of_cpus(batch, sets, head, axes):
    # XLA compiles some forms of bf16 products for CPUs that it then cannot run, see `model/products.py`.
    if head == "full":
        hidden, blocks = weights_of_model()
        count = math.prod(axes.values()) if axes else 1
        placement = OnMesh(make_mesh(axes, jax.devices()[:count])) if axes else OneDevice()

        def total(dtype):
            def run(hidden, blocks):
                settings = LossSettings(VOCABULARY, Z_WEIGHT, 7, placement)
                fields = (targets_of(batch), batch.loss_mask)
                return linear_cross_entropy(settings, hidden.astype(dtype), blocks, *fields)[0]

            return jax.jit(jax.value_and_grad(run, (0, 1)))(hidden, blocks)

        (narrow, slopes), (wide, exact) = total(jnp.bfloat16), total(jnp.float32)
    else:
        (narrow, _), slopes = of_head(batch, sets, axes, dtype=jnp.bfloat16)
        (wide, _), exact = of_head(batch, sets, axes)
    assert float(narrow) == pytest.approx(float(wide), rel=0.01)
    for found, expected in zip(jax.tree.leaves(slopes), jax.tree.leaves(exact), strict=True):
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_windows_of_only_text_and_windows_without_text_are_computed(mixture, sets):
    text = mixture.source_names.index("text")
    audio = mixture.source_names.index("view6")
    numbers = range(400)
    sources = mixture.batch(0, numbers).source
    for source in (text, audio):
        rows = [n for n, s in zip(numbers, sources, strict=True) if s == source][:ROWS]
        assert len(rows) == ROWS
        batch = mixture.batch(0, rows)
        assert_same(of_head(batch, sets, None), plain(batch))


def test_the_normalizer_does_not_depend_on_the_target(batch, sets):
    rules = partition(LAYOUT)
    boundary = rules.sets.index(((LAYOUT.audio_end, LAYOUT.audio_base + LAYOUT.codebook_sizes[0]),))
    audio = np.roll(batch.tokens, -1, axis=1) >= LAYOUT.audio_base
    here = (batch.legal_set == boundary) & (batch.loss_mask > 0) & audio
    row, position = np.argwhere(here)[5]
    changed = batch._replace(tokens=batch.tokens.copy())
    changed.tokens[row, position + 1] = LAYOUT.audio_end
    (_, (nll, log_z, _)), _ = of_head(batch, sets, None)
    (_, (other_nll, other_z, _)), _ = of_head(changed, sets, None)
    assert float(log_z[row, position]) == pytest.approx(float(other_z[row, position]), rel=1e-6)
    assert float(nll[row, position]) != float(other_nll[row, position])


def test_a_set_that_is_more_frequent_than_possible_gives_nan(batch, sets):
    rules = partition(LAYOUT)
    inside = rules.sets.index(((LAYOUT.codebook_offsets[2], LAYOUT.size),))
    legal = batch.legal_set.copy()
    legal[:4] = inside
    targets = batch.tokens.copy()
    targets[:4] = LAYOUT.codebook_offsets[2]
    wrong = batch._replace(legal_set=legal, tokens=targets)
    (total, (nll, _, _)), _ = of_head(wrong, sets, None)
    assert math.isnan(float(total)) and not np.isnan(np.asarray(nll)[4:]).any()


def arrays_in(jaxpr):
    """The shapes of all arrays that a jaxpr and its inner jaxprs create."""
    found = []
    for equation in jaxpr.eqns:
        found += [v.aval.shape for v in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                    found += arrays_in(getattr(inner, "jaxpr", inner))
    return found


def test_no_array_has_all_logits():
    vocabulary = VocabularyBlocks(3000, (512, 512))
    text, markers = ((0, 2990),), [((n, n + 1),) for n in range(2990, 2996)]
    groups = [((2995, 3512),), ((3512, 4024),)]
    legal = legal_sets(vocabulary, [text, *markers, *groups], [1] * 7 + [2, 2])
    batch, sequence, chunk = 8, 256, 64
    settings = LossSettings(vocabulary, 1e-4, chunk, OneDevice(), legal, 16)

    def total(hidden, blocks, *fields):
        return legal_cross_entropy(settings, hidden, blocks, *fields)[0]

    def abstract(kind, *shape):
        return jax.ShapeDtypeStruct(shape, kind)

    blocks = (
        abstract(jnp.float32, 1, vocabulary.padded_first, WIDTH),
        abstract(jnp.float32, 2, 512, WIDTH),
    )
    fields = [abstract(kind, batch, sequence) for kind in (jnp.int32, jnp.float32, jnp.uint8)]
    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(
        abstract(jnp.float32, batch, sequence, WIDTH), blocks, *fields, abstract(jnp.int32, batch)
    )
    largest = max(math.prod(shape) for shape in arrays_in(jaxpr.jaxpr))
    # The slots of the two groups, and the chunks of text and of the sampled positions.
    assert largest <= max(batch * sequence * 512, chunk * vocabulary.padded_first)
    assert largest < batch * sequence * vocabulary.size / 4


@pytest.mark.parametrize("every", [3, 6, 9])
def test_sampling_only_some_codebooks_is_refused(every):
    with pytest.raises(UserError, match=f"full_every = {every} and the 3 codebooks.*prime"):
        sets_of_head(ModelConfig(head="legal", full_every=every), LAYOUT)
    assert sets_of_head(ModelConfig(head="full", full_every=every), LAYOUT) is None


def test_sets_that_the_loss_cannot_compute_are_refused():
    vocabulary = VocabularyBlocks(100, (10, 20))
    for ids in (((0, 90), (100, 105)), ((100, 130),), ((95, 111),)):
        with pytest.raises(UserError, match="legal set 1 is not one whole group"):
            legal_sets(vocabulary, [((0, 90),), ids], [1, 1])
    with pytest.raises(UserError, match="70 ids of text and markers differ"):
        legal_sets(VocabularyBlocks(500, ()), [((0, 100),), ((100, 170),)], [1, 1])
    with pytest.raises(UserError, match="0 legal sets"):
        legal_sets(vocabulary, [], [])


def test_a_run_repeats_bit_for_bit_after_it_was_killed(config, datasets, tmp_path):
    settings = config(model__head="legal", model__full_every=5)
    assert train(settings, tmp_path / "whole", hooks=[LossHook(3, 0)]) == DONE
    with pytest.raises(KilledError):
        train(settings, tmp_path / "killed", hooks=[Watcher(at=4, action=kill)])
    assert train(settings, tmp_path / "killed", hooks=[LossHook(3, 0)]) == DONE
    assert_same_run(tmp_path / "killed", tmp_path / "whole", 6)
    rows = rows_of(tmp_path / "whole")
    for row in rows:
        assert "head_rows" not in row and 0 < row["legal_nll"] < 2 * math.log(LAYOUT.size)
        assert 0 < row["mfu"] < row["mfu_full_head"]
        assert 0 < row["text_positions_mean"] <= row["text_positions_worst"] <= 32
    assert "validation/loss/all" in rows[2]


def test_the_same_parameters_have_a_lower_loss_over_legal_ids(config, tmp_path):
    first = {}
    for head in ("full", "legal"):
        # The learning rate of the first step is 0.
        assert train(config(model__head=head, steps=1), tmp_path / head) == DONE
        first[head] = rows_of(tmp_path / head)[0]
    for name in ("text", "semantic", "acoustic_1", "marker", "all"):
        assert first["legal"][f"loss/{name}"] < first["full"][f"loss/{name}"]
    # At the start all ids are about equally probable, so the loss is the logarithm of their number.
    assert first["full"]["loss/acoustic_1"] == pytest.approx(math.log(LAYOUT.size), abs=0.3)
    assert first["legal"]["loss/acoustic_1"] == pytest.approx(math.log(6), abs=0.3)
