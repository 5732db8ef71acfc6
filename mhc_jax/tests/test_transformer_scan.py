"""TransformerScan: what it sees and what it does not, its forms, streams of any length, published sizes and names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import decode, functional, interop
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_shapes, parameter_count
from mhc_jax.models import gpt2, transformer_scan, with_topology
from mhc_jax.nn.channel import MoEConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.nn.transformer_scan import gpt2_backbone
from mhc_jax.tests.own import slow_unless
from train.objectives.cross_entropy import CrossEntropyConfig

VOCAB, CHUNK, LENGTH = 13, 3, 29
DOUBLE = Execution(policy="float64")


def small(**changes):
    """Two layers that read chunks of three tokens."""
    networks = {"aggregator": gpt2_backbone(8, 1, 2, causal=False), "reader": gpt2_backbone(8, 2, 2)}
    sizes = {"vocab_size": VOCAB, "max_len": 48, "chunk": CHUNK, **networks}
    return transformer_scan("tiny", **(sizes | changes))


def loud(config, seed=0):
    """Parameters that all act."""
    params = mhc_jax.init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape, x.dtype), params)


@pytest.fixture(scope="module")
def params():
    return loud(small())


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(2), (2, LENGTH), 0, VOCAB)


def compiled(function, **options):
    """Its values do not depend on how well it is compiled."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


@functools.cache
def forward(config):
    return compiled(lambda params, tokens: mhc_jax.apply(config, params, tokens).logits_BTV)


def test_tokens_see_all_chunks_before_them_and_nothing_later(params, tokens):
    logits = forward(small())
    healthy = logits(params, tokens)
    for place in (0, 7, 11):
        other = logits(params, tokens.at[:, place].add(1) % VOCAB)
        changed_T = (healthy != other).any(axis=(0, 2))
        assert not changed_T[:place].any()
        assert changed_T[place:].all()


@pytest.mark.slow
@pytest.mark.parametrize("scan", ["blelloch", "sequential"])
def test_forms_of_the_scan_are_one_function(params, tokens, scan):
    """Of seven chunks and the one to come, logits and gradients."""

    def loss(params, scan):
        logits = mhc_jax.apply(small(scan=scan), params, tokens[:, :21]).logits_BTV
        return jnp.sum(jnp.sin(logits)), logits

    run = compiled(jax.grad(loss, has_aux=True), static_argnums=1)
    one, other = run(params, "parallel"), run(params, scan)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


@pytest.mark.slow
def test_the_direction_of_the_aggregator_matters_in_chunks_of_several_tokens(tokens):
    for chunk, same in ((1, True), (3, False)):
        config = small(chunk=chunk)
        params = loud(config)
        causal = config.aggregator.replace(mixer=config.aggregator.mixer.replace(causal=True))
        one, other = (forward(c)(params, tokens[:, :12]) for c in (config, config.replace(aggregator=causal)))
        assert bool(jnp.allclose(one, other, rtol=1e-5, atol=1e-5)) == same


@pytest.mark.parametrize("marked", slow_unless({True}, [False, True]))
def test_a_chunk_and_its_repetition_end_alike_unless_prefixes_are_marked(marked):
    """So that of words over a group ``a`` and ``a a`` get one answer: 5 of the 36 words of two over S3 are lost."""
    config = small(chunk=1, boundary="token", prefix_embedding=marked)
    logits_BTV = forward(config)(loud(config), jnp.full((1, 2), 4))
    assert bool(jnp.allclose(logits_BTV[:, 0], logits_BTV[:, 1], rtol=1e-5, atol=1e-5)) != marked


@pytest.mark.parametrize(
    "changes",
    [
        {"side_embedding": True, "prefix_embedding": True},
        pytest.param({"boundary": "token", "positions": "legacy_mixed", "head": "tied"}, marks=pytest.mark.slow),
        pytest.param({"chunk": 1, "positions": "absolute"}, marks=pytest.mark.slow),
        pytest.param(
            {"reader": gpt2_backbone(8, 1, 2).replace(mlp=MoEConfig(experts=3, hidden=4))}, marks=pytest.mark.slow
        ),
    ],
    ids=["prefix", "token", "single tokens", "experts that read"],
)
def test_a_stream_equals_the_whole(tokens, changes):
    """Across a power of two of chunks, in any pieces."""
    with jax.enable_x64():
        config = small(execution=DOUBLE, **changes)
        params = loud(config)
        whole = forward(config)(params, tokens)
        extend = compiled(functools.partial(decode.extend, config))
        cache, found = decode.init_cache(config, params, 2), []
        for piece in jnp.split(tokens, [14, *range(15, LENGTH)], axis=1):
            logits, cache = extend(params, piece, cache)
            found.append(logits)
        np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_rows_of_unequal_length_go_on_for_ever(params, tokens):
    """As they go on alone, also past the longest text."""
    config, lengths, new = small(max_len=12), [10, 4], 9
    found = mhc_jax.generate(config, params, tokens[:, :10], lengths_B=lengths, max_new_tokens=new, temperature=0.0)
    assert decode.goes_on(config, params)
    for row, length in enumerate(lengths):
        text = tokens[row, :length]
        for _ in range(new):
            padded = jnp.pad(text, (0, 19 - len(text)))[None]
            last = forward(small())(params, padded)[0, len(text) - 1]
            text = jnp.append(text, jnp.argmax(last))
        np.testing.assert_array_equal(found[row, : length + new], text)


@pytest.mark.slow
def test_one_chunk_is_a_gpt2():
    config = small(chunk=12, max_len=12, boundary="token", head="tied")
    lm = gpt2(vocab_size=VOCAB, max_len=12, width=8, layers=2, mixer=AttentionConfig(heads=2))
    params = loud(config)
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, VOCAB)
    expected = mhc_jax.apply(lm, {"embed": params["embed"], **params["reader"]}, tokens).logits_BTV
    np.testing.assert_allclose(forward(config)(params, tokens), expected, rtol=1e-5, atol=1e-5)
    # Read as a prefix, a chunk gives the rest of it to what follows; all but its last token is as before.
    prefixed = forward(config.replace(boundary="prefix"))(params, tokens)
    np.testing.assert_allclose(prefixed[:, :-1], expected[:, :-1], rtol=1e-5, atol=1e-5)


def test_prefixes_can_be_seen(params, tokens):
    for boundary, rows in (("prefix", 5), ("token", 4)):
        run = functools.partial(mhc_jax.apply, small(boundary=boundary), taps=True)
        taps = compiled(run)(params, tokens[:, :12]).taps
        assert taps["prefixes"].shape == (2, rows, CHUNK, 8)
        assert not taps["prefixes"][:, 0].any()
        np.testing.assert_allclose(taps["prefixes"][:, 1], taps["embed"][:, :CHUNK], rtol=1e-6)


@pytest.mark.slow
def test_tokens_that_do_not_count(params, tokens):
    batch = {"inputs": tokens[:, :12], "targets": tokens[:, 1:13]}
    config = small(boundary="unscored")
    sums, _ = CrossEntropyConfig(chunk=12).sums(config, params, batch)
    assert int(sums["tokens"]) == 2 * 8
    log_p = jax.nn.log_softmax(forward(config)(params, batch["inputs"]))
    loss_BT = -jnp.take_along_axis(log_p, batch["targets"][..., None], axis=-1)[..., 0]
    counted = np.arange(12) % CHUNK != CHUNK - 1
    np.testing.assert_allclose(sums["loss"], loss_BT[:, counted].sum(), rtol=1e-5)
    every, _ = CrossEntropyConfig(chunk=12).sums(small(), params, batch)
    assert int(every["tokens"]) == 2 * 12


@pytest.mark.slow
@pytest.mark.parametrize("scan", slow_unless({"parallel"}, ["parallel", "blelloch", "sequential"]))
def test_auxiliary_losses_are_the_mean_over_all_merges(tokens, scan):
    """Of the tree over five chunks."""
    experts = gpt2_backbone(8, 1, 2, causal=False).replace(mlp=MoEConfig(experts=3, hidden=4, balance=1.0))
    config = small(aggregator=experts, boundary="token", scan=scan)

    def measured(params):
        return mhc_jax.apply(config, params, tokens[:, :18]).penalties["expert_balance"]

    def expected(params):
        model, found = functional.bind(config, params), []
        x_BTD = mhc_jax.apply(config, params, tokens[:, :18], taps=True).taps["embed"]
        a, b, c, d, e, _ = jnp.split(x_BTD, 6, axis=1)

        def merged(older, newer):
            scope = Scope.over(2 * CHUNK)
            y_BTD, _ = model.aggregator(jnp.concatenate([older, newer], axis=1), None, scope)
            found.append(scope.mean_penalties()["expert_balance"])
            return y_BTD[:, CHUNK:]

        ab = merged(a, b)
        merged(ab, c)
        merged(merged(ab, merged(c, d)), e)
        return sum(found) / 5

    params = loud(config)
    np.testing.assert_allclose(compiled(measured)(params), compiled(expected)(params), rtol=1e-5)


@pytest.mark.slow
def test_dropout_is_drawn_in_the_tree(params, tokens):
    quiet = small()
    for changes in ({"output_dropout": 0.5}, {"aggregator": quiet.aggregator.replace(dropout=0.5)}):
        run = compiled(functools.partial(mhc_jax.apply, small(**changes), params, tokens[:, :9]))
        one, other = (run(key=jax.random.key(seed)).logits_BTV for seed in (0, 1))
        assert not jnp.allclose(one, other)


def test_published_sizes():
    base = transformer_scan("base", positions="absolute")
    assert parameter_count(base) == 170_126_592
    parts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in param_shapes(base).items()}
    assert parts == {"embed": 39_383_808, "aggregator": 7_089_408, "reader": 85_056_000, "head": 38_597_376}
    original = transformer_scan("base", "original")
    assert parameter_count(original) == 170_126_592
    for switch, vectors in (("side_embedding", 2), ("prefix_embedding", 1)):
        assert parameter_count(small(**{switch: True})) == parameter_count(small()) + vectors * 8
    assert [transformer_scan(size).width for size in ("tiny", "standard", "medium")] == [64, 256, 1024]


@pytest.mark.parametrize(
    ("form", "table", "head", "out"),
    [pytest.param("default", 0.02, 0.02, 0.1**0.5, marks=pytest.mark.slow), ("original", 1, 0.072, 1)],
)
def test_initial_values(form, table, head, out):
    config = transformer_scan("small", form, vocab_size=500, max_len=256, reader_layers=5, chunk=64)
    params = mhc_jax.init(config, jax.random.key(0))
    std = {
        "table": params["embed"]["tokens"].std(),
        "positions": params["embed"]["positions"].std(),
        "head": params["head"]["kernel"].std() * (1 if form == "default" else 128**0.5 / 8),
        "out": params["reader"]["blocks"]["mixer"]["branch"]["out_proj"]["kernel"].std() / 0.02,
        "down": params["reader"]["blocks"]["mlp"]["branch"]["down_proj"]["kernel"].std() / 0.02,
    }
    expected = {"table": table, "positions": table, "head": head, "out": out, "down": out}
    assert std == pytest.approx(expected, rel=0.05)
    assert config.first_logit_std == pytest.approx(0.02 * 128**0.5 if form == "default" else 3**-0.5)


def test_what_is_said_of_it():
    config = small(max_len=12)
    assert config.description[0] == "TransformerScan: chunks of 3 tokens, 4 aggregations in 12 tokens, scan parallel"
    assert config.remark == ""
    assert "12 tokens are 2 chunks of 6" in small(chunk=6, max_len=12).remark
    assert small(boundary="token", max_len=9).aggregations(9) == 1
    reader = "reader: 2 layers of width 8, residual static_mhc, 4 streams"
    assert reader in str(with_topology(config, "mhc").description)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"aggregator": gpt2_backbone(4, 1, 2)}, "one width, got 4, 8"),
        ({"reader": gpt2_backbone(8, 1, 2, causal=False)}, "reader must be causal"),
        ({"head": "tied", "outputs": 4}, "need head 'dense'"),
        ({"scan": "legacy_parallel"}, "no prefix of a whole text"),
        (
            {"scan": "legacy_parallel", "boundary": "token", "max_len": 15},
            "power of two of chunks, not the 5 of 15 tokens",
        ),
        ({"output_dropout": 1.0}, r"output_dropout must lie in \[0, 1\)"),
    ],
)
def test_contradictions_are_named(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        small(**changes).validate()


def test_what_it_cannot_do_is_refused(params, tokens):
    with pytest.raises(ConfigError, match="segments it cannot keep apart"):
        mhc_jax.apply(small(), params, tokens, segment_ids=tokens)
    legacy = small(scan="legacy_blelloch", boundary="token", max_len=12)
    with pytest.raises(ConfigError, match="cannot be extended; 'parallel'"):
        mhc_jax.generate(legacy, params, tokens[:, :3], max_new_tokens=1, temperature=0.0)
    with pytest.raises(ConfigError, match="needs a power of two of chunks, not the 3 of 7 tokens"):
        mhc_jax.apply(legacy, params, tokens[:, :7])
    with pytest.raises(ConfigError, match="outputs 5 are not the 13 tokens"):
        small(outputs=5).check_next_token()


@pytest.mark.slow
def test_original_names_there_and_back():
    config = transformer_scan("tiny", "original", vocab_size=VOCAB, max_len=12, chunk=3)
    drawn = compiled(functools.partial(mhc_jax.init, config))(jax.random.key(0))
    weights = interop.to_original("transformer_scan", config, drawn)
    assert weights["T0.wpe.weight"].shape == (12, 64)
    assert weights["T1.blocks.0.attn.c_attn.weight"].shape == (64, 192)
    assert weights["T2.blocks.0.mlp.c_proj.weight"].shape == (256, 64)
    assert len(weights) == 3 + 2 * (12 + 2)
    masks = {f"T{i}.blocks.0.attn.bias": np.ones((1, 1, 12, 12), bool) for i in (1, 2)}
    read, params = interop.from_original("transformer_scan", weights | masks, chunk_size=3)
    assert read == config
    for mode in ("parallel", "blelloch"):
        other, _ = interop.from_original("transformer_scan", weights, chunk_size=3, train_mode=mode)
        assert (other.scan, other.positions) == (f"legacy_{mode}", "absolute")
    with pytest.raises(interop.InteropError, match="did you mean 'parallel'"):
        interop.from_original("transformer_scan", weights, train_mode="paralel")
    with pytest.raises(ConfigError, match="heads must be at least 1, got 0"):
        interop.from_original("transformer_scan", weights, n_head=0)
    back = interop.to_original("transformer_scan", read, params)
    assert back.keys() == weights.keys()
    for name, x in weights.items():
        np.testing.assert_array_equal(back[name], x)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (
            with_topology(small(side_embedding=True, prefix_embedding=True), "mhc"),
            "side embeddings, a prefix embedding, .*residual 'static_mhc' .* in the aggregator",
        ),
        (small(), "outputs of prefixes at the ends of chunks, local positions with scan 'parallel'$"),
        (small(boundary="token", positions="absolute"), "absolute positions with scan 'parallel'$"),
    ],
    ids=["parts", "as described", "positions"],
)
def test_what_the_original_cannot_express_is_named(config, fault):
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), param_shapes(config))
    with pytest.raises(interop.InteropError, match=fault):
        interop.to_original("transformer_scan", config, params)
