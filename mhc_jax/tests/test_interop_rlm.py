"""Checkpoints of RLM-mHC: state_dicts and folders, in and out, and what is refused."""

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import mhc_jax
from mhc_jax import interop
from mhc_jax.models import rlm
from mhc_jax.models.rlm import fold
from mhc_jax.nn.channel import LinearMHCConfig
from mhc_jax.tree import flatten
from parity_tests.replays.rlm import fill

C, FLOWS, FFN, VOCAB = 8, 2, 7, 13
TOKENS = np.arange(12).reshape(2, 6)
HINTS = {"num_heads": 2, "max_seq_len": 9}


def published(*, mhc=True, layers=2):
    """A state_dict with every name of the original's, in its own shapes."""
    shapes = {"embeddings.embedding.weight": (VOCAB, C), "norm.weight": (C,)}
    inside = {
        "norm1.weight": (C,),
        "norm2.weight": (C,),
        "attention.qkv_proj.weight": (3 * C, C),
        "attention.out_proj.weight": (C, C),
        "ffn.gate_up_proj.weight": (2 * FFN, C),
        "ffn.down_proj.weight": (C, FFN),
    }
    for site in ("pre", "post") if mhc else ():
        inside |= {
            f"norm_mhc_{site}.weight": (C,),
            f"mhc_{site}.connection_weights": (FLOWS, FLOWS),
            f"mhc_{site}.expand_proj.weight": (FLOWS * C, C),
            f"mhc_{site}.contract_proj.weight": (C, FLOWS * C),
        }
    shapes |= {f"layers.{layer}.{name}": shape for layer in range(layers) for name, shape in inside.items()}
    return {name: fill(name, shape) for name, shape in shapes.items()}


def logits(config, params):
    return np.asarray(mhc_jax.apply(config, params, TOKENS).logits_BTV)


@pytest.mark.parametrize("mhc", [True, False])
def test_there_and_back_bit_by_bit(mhc):
    weights = published(mhc=mhc)
    config, params = interop.from_original("rlm", weights, **HINTS)
    assert (config.before_mixer is not None) == mhc
    back = interop.to_original("rlm", config, params)
    np.testing.assert_array_equal(back.pop("lm_head.weight"), weights["embeddings.embedding.weight"])
    assert back.keys() == weights.keys()
    for name, x in weights.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_folders_are_the_originals(tmp_path):
    config, params = interop.from_original("rlm", published(), **HINTS, rope_theta=100.0, mhc_sinkhorn_iters=3)
    for _ in range(2):  # an earlier export is replaced
        interop.save_rlm(tmp_path / "out", config, params)
    stored = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert stored == {
        "model": {
            "hidden_dim": C,
            "num_layers": 2,
            "num_heads": 2,
            "head_dim": 4,
            "ffn_dim": FFN,
            "vocab_size": VOCAB,
            "max_seq_len": 9,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "mhc_enabled": True,
            "mhc_flows": FLOWS,
            "mhc_sinkhorn_iters": 3,
            "rope_theta": 100.0,
            "gradient_checkpointing": False,
        }
    }
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    again, loaded = interop.load_rlm(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    config, params = interop.from_original("rlm", published(), **HINTS)
    interop.save_rlm(tmp_path / "out", config, params)
    file = tmp_path / "out" / "config.yaml"
    text = file.read_text()
    for broken, fault in (
        ("model: [1", "is not YAML"),
        ("model: {hidden_dim: 2001-99-99}", "is not YAML"),
        ("model: {mhc_enabled: !!bool perhaps}", "is not YAML"),
        (f"model: {{num_heads: {'9' * 5000}}}", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("- 1", "must be a dict"),
        (text.replace("hidden_dim: 8", "hidden_dim: 16"), "hidden_dim=16 contradicts the tensors"),
        (text.replace("num_heads: 2", "num_heads: 3"), "heads 3 must divide the width 8"),
        (text.replace("dropout: 0.0", "dropout: 0.1", 1), r"dropout=0.1 is not supported, only 0.0 is"),
    ):
        file.write_text(broken)
        with pytest.raises(interop.InteropError, match=fault):
            interop.load_rlm(tmp_path / "out")
    interop.load_rlm(tmp_path / "out", dropout=0.0)
    file.unlink()
    with pytest.raises(interop.InteropError, match=r"config.yaml cannot be read"):
        interop.load_rlm(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(interop.InteropError, match="holds other files"):
        interop.save_rlm(tmp_path / "full", config, params)


def test_a_missing_tensor_and_a_head_of_its_own_are_named():
    weights = published()
    with pytest.raises(interop.InteropError, match=r"layers.1.mhc_post.expand_proj.weight"):
        interop.from_original("rlm", {k: x for k, x in weights.items() if "1.mhc_post.expand" not in k}, **HINTS)
    with pytest.raises(interop.InteropError, match="hidden_dim=array.* contradicts the tensors"):
        interop.from_original("rlm", weights, **HINTS, hidden_dim=np.array([5, 5]))
    broken = {**weights, "embeddings.embedding.weight": np.full((VOCAB, C), np.nan, np.float32)}
    interop.from_original("rlm", broken | {"lm_head.weight": broken["embeddings.embedding.weight"]}, **HINTS)
    with pytest.raises(interop.InteropError, match="one tied matrix"):
        interop.from_original("rlm", weights | {"lm_head.weight": np.ones((VOCAB, C), np.float32)}, **HINTS)


def test_what_the_original_cannot_express_is_named():
    config = rlm("small", heads=2, vocab_size=VOCAB, max_len=9, width=C, layers=1)
    assert config.mlp.hidden_width(C) == 24  # 8/3 of another width than the size's
    params = mhc_jax.init(config, jax.random.key(0))
    with pytest.raises(interop.InteropError, match="residual 'dynamic_mhc' instead of 'plain'.*interleaved"):
        interop.to_original("rlm", config, params)


@pytest.mark.slow
def test_folded_layers_give_the_same_logits_from_an_eighth_of_the_numbers():
    config, params = interop.from_original("rlm", published(), **HINTS)
    want = logits(config, params)
    computed = {"before_mixer": config.before_mixer.replace(form="folded")}
    computed["before_mlp"] = computed["before_mixer"]
    np.testing.assert_allclose(logits(config.replace(**computed), params), want, rtol=1e-5, atol=1e-5)
    smaller, fewer = fold(config, params)
    np.testing.assert_allclose(logits(smaller, fewer), want, rtol=1e-5, atol=1e-5)
    count = {
        name: sum(x.size for path, x in flatten(tree["blocks"]["before_mlp"]["branch"]).items())
        for name, tree in (("flows", params), ("one", fewer))
    }
    assert count == {"flows": 2 * (2 * FLOWS * C * C + FLOWS * FLOWS), "one": 2 * C * C}
    with pytest.raises(mhc_jax.ConfigError, match="no linear mHC layers"):
        fold(smaller, fewer)
    for other in (fewer, {}):
        with pytest.raises(mhc_jax.ConfigError, match=r"missing .*before_mixer\.branch\.expand"):
            fold(config, other)


@pytest.mark.parametrize(("tokens", "folds"), [(4, False), (5, False), (6, True)])
def test_the_cheaper_form_is_chosen_by_the_number_of_tokens(tokens, folds):
    """n D^3 + t D^2 products against 2 n D^2 t: equal at t = n D / (2 n - 1), 16 / 3 here."""
    config = LinearMHCConfig(flows=FLOWS)
    assert config.folds(tokens, C) == folds
    assert config.replace(form="folded").folds(1, C)
    assert not config.replace(form="flows").folds(10**6, C)
