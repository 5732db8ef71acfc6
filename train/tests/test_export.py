import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mhc_jax
import torch_ref
from mhc_jax.config import ConfigError
from mhc_jax.models import rlm
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from train import evaluate, export, sample
from train.data import load_tokenizer
from train.data.exchange import tokenizer_files
from train.storage.restore import load_run
from train.tests.tiny import tiny_config, tiny_export

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def test_library_reads_the_same_model(tiny):
    config, params, folder = tiny
    model, loaded = mhc_jax.load(folder)
    assert model == config.model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_pytorch_mirror_reads_it_and_agrees(tiny):
    config, params, folder = tiny
    model = torch_ref.build(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
    theirs = model.eval()(torch.from_numpy(tokens)).detach().numpy()
    ours = mhc_jax.apply(config.model, params, tokens).logits_BTV
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_run_configuration_travels_along(tiny):
    config, _, folder = tiny
    assert load_run(folder)[0] == config
    assert json.loads((folder / "run.json").read_text())["data"]["tokenizer"] == "bytes"


def test_command_copies_and_names_what_is_next(tiny, tmp_path, capsys):
    _, params, folder = tiny
    out = tmp_path / "again"
    export.main([str(folder), str(out)])
    assert f"--checkpoint {out}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, mhc_jax.load(out)[1], params)


def test_nothing_is_overwritten(tiny):
    config, params, folder = tiny
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        export.export(config, params, folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """A GPT-2 over bytes: its run configuration, its parameters and its folder in the format of transformers."""
    folder = tmp_path_factory.mktemp("gpt")
    config = tiny_config(folder)
    parts = {"mixer": AttentionConfig(heads=2), "mlp": GeluMLPConfig(activation="tanh"), "norm": LayerNormConfig()}
    config = config.replace(model=mhc_jax.LMConfig(vocab_size=257, max_len=32, width=8, layers=2, **parts))
    params = mhc_jax.init(config.model, jax.random.key(0))
    export.export(config, params, folder / "ours")
    export.main([str(folder / "ours"), str(folder / "theirs"), "--format", "huggingface"])
    return config, params, folder / "theirs"


def test_transformers_reads_an_export_and_agrees(gpt):
    from transformers import AutoModelForCausalLM

    config, params, folder = gpt
    tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs = model(torch.from_numpy(tokens).long()).logits.detach().numpy()
    np.testing.assert_allclose(mhc_jax.apply(config.model, params, tokens).logits_BTV, theirs, atol=1e-5)


TEXTS = ["line 1: the", "héllo\n  wörld\r\n\x00 日本 🙂", "<|endoftext|> spelled out", " "]


def test_transformers_continues_text_as_we_do(gpt):
    """Offline, from the folder alone: ids, and the greedy continuation."""
    from transformers import AutoTokenizer, pipeline

    config, params, folder = gpt
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == list(text.encode())
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token_id, theirs.model_max_length, theirs.padding_side) == (256, 32, "left")
    generate = pipeline("text-generation", str(folder))
    (found,) = generate("the", max_new_tokens=6, do_sample=False, return_tensors=True)
    ids = mhc_jax.generate(config.model, params, [list(b"the")], max_new_tokens=6, temperature=0, eos_id=256)
    assert found["generated_token_ids"] == ids[0, : len(found["generated_token_ids"])].tolist()


@pytest.mark.parametrize(
    ("name", "texts"), [("gpt2", ["line 1: the", "  héllo\n日本<|endoftext|>"]), ("chars:\nabé日", ["abé\n日ba"])]
)
def test_tokenizers_travel(name, texts, tmp_path):
    from transformers import AutoTokenizer

    ours = load_tokenizer(name)
    for file, text in tokenizer_files(ours, 99).items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.eos_id


def test_ids_beyond_the_tokenizer_are_never_generated(gpt, tmp_path):
    config = gpt[0].replace(model=gpt[0].model.replace(vocab_size=260))
    export.export(config, mhc_jax.init(config.model, jax.random.key(0)), tmp_path / "out", "huggingface")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [257, 258, 259]
    assert settings["eos_token_id"] == 256


def test_commands_take_a_folder_of_transformers(gpt, capsys, tmp_path):
    config, params, folder = gpt
    found, loaded = load_run(folder)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    evaluate.main([str(folder), "--json"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(np.log(257), abs=0.1)
    sample.main([str(folder), "--prompt", "line 1: the", "--tokens", "4"])
    assert capsys.readouterr().out.startswith("line 1: the")


def test_a_model_without_streams_of_rlm_travels_as_a_llama(gpt, tmp_path):
    model = rlm("small", "plain", vocab_size=257, max_len=32, width=8, layers=1)
    config = gpt[0].replace(model=model.replace(mixer=model.mixer.replace(heads=2), mlp=model.mlp.replace(hidden=12)))
    params = mhc_jax.init(config.model, jax.random.key(0))
    export.export(config, params, tmp_path / "out", "huggingface")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    found, loaded = load_run(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert found.data == config.data
    sample.main([str(tmp_path / "out"), "--prompt", "the", "--tokens", "2"])


def test_a_downloaded_folder_uses_its_own_tokenizer(gpt, tmp_path):
    config, params, _ = gpt
    mhc_jax.interop.save_huggingface(tmp_path / "downloaded", config.model, params)
    assert load_run(tmp_path / "downloaded")[0].data.tokenizer == "gpt2"
    (tmp_path / "downloaded" / "tokenizer.json").write_text("{}")
    found, _ = load_run(tmp_path / "downloaded")
    assert found.data.tokenizer == str(tmp_path / "downloaded")
    assert (found.name, found.data.seq_len) == ("downloaded", 32)


def test_a_model_that_transformers_does_not_know_carries_its_code(tiny, tmp_path, capsys):
    _, params, folder = tiny
    out = tmp_path / "out"
    export.main([str(folder), str(out), "--format", "huggingface"])
    said = capsys.readouterr().out
    assert "no architecture for it, load it with trust_remote_code=True:\n  as deepseek_v2, it has " in said
    assert "\n  as llama, it has " in said
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["mhc"]["kind"]) == (256, "lm")
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_mhc.MHCForCausalLM"
    jax.tree.map(np.testing.assert_array_equal, load_run(out)[1], params)
