"""Reads FOLDER ... of remote code as a user of transformers does, who has nothing of this project.

Beside each lies ``NAME.npz`` with what JAX computes; ``NAME-again`` receives the model as transformers saves it.
"""

import copy
import sys


class Nothing:
    """Finds none of the project's modules, nor JAX."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mhc_jax", "torch_ref", "train", "parity_tests", "jax", "flax"}:
            raise ModuleNotFoundError(f"{name} is not to be imported here")


sys.meta_path.insert(0, Nothing())

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
NEW = {"eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}


def check(folder):
    """Everything that generation offers, against what JAX found."""
    expected = np.load(f"{folder}.npz")
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    ids = torch.from_numpy(expected["ids"]).long()
    output = model(ids, labels=ids)
    logits = output.logits.numpy()
    np.testing.assert_allclose(logits, expected["logits"], rtol=2e-4, atol=2e-5)
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, loss)

    padded, mask, start = left(ids, expected["lengths"])
    wanted = expected["greedy"]
    pieces, kept = widths(model)
    found = model.generate(padded, attention_mask=mask, do_sample=False, **NEW)
    np.testing.assert_array_equal(found[:, ids.shape[1] :], wanted)
    assert pieces == [ids.shape[1], 1, 1, 1, 1, 1], "the cache holds what was read"
    assert kept == [1] * 6, "of the prompt, the last logits alone are computed"
    for row, first in enumerate(start):
        alone = model.generate(padded[row : row + 1, first:], do_sample=False, **NEW)
        np.testing.assert_array_equal(alone[0, -NEW["max_new_tokens"] :], wanted[row])
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 9, "num_return_sequences": 2}, {"num_beams": 3}):
        torch.manual_seed(0)
        cached = model.generate(padded, attention_mask=mask, **options, **NEW)
        torch.manual_seed(0)
        again = model.generate(padded, attention_mask=mask, use_cache=False, **options, **NEW)
        assert torch.equal(cached, again), options

    model.save_pretrained(f"{folder}-again")
    reloaded = AutoModelForCausalLM.from_pretrained(f"{folder}-again", trust_remote_code=True)
    assert torch.equal(reloaded(ids).logits, output.logits)
    low = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    difference = (low(ids).logits.float() - output.logits).square().mean()
    assert 0 < difference < 0.1**2 * output.logits.square().mean()


def left(ids, lengths):
    """The first tokens of each row behind padding, their mask, and where they start."""
    start = ids.shape[1] - torch.from_numpy(lengths)
    mask = (torch.arange(ids.shape[1]) >= start[:, None]).long()
    rows = [F.pad(row[: int(n)], (int(at), 0)) for row, n, at in zip(ids, lengths, start)]
    return torch.stack(rows), mask, start.tolist()


def widths(model):
    """Lists that fill with the numbers of columns that the mirror is given, and of those whose logits it gives."""
    given, kept, extend = [], [], model.lm.extend

    def counted(tokens, cache, **options):
        logits, cache = extend(tokens, cache, **options)
        given.append(tokens.shape[1])
        kept.append(logits.shape[1])
        return logits, cache

    model.lm.extend = counted
    return given, kept


def refused(message, function):
    fault = ""
    try:
        function()
    except ValueError as error:
        fault = str(error)
    assert message in fault


def check_edges(folder):
    """Padding in other places, other caches, gradients, and whole texts."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids, ones = torch.arange(10).reshape(2, 5), torch.ones(2, 5)
    after = ones.clone()
    after[0, 3:] = 0
    torch.testing.assert_close(model(ids, attention_mask=after).logits[0, :3], model(ids).logits[0, :3])
    inside = ones.clone()
    inside[0, 2] = 0
    refused("padding inside a row", lambda: model(ids, attention_mask=inside))
    refused("must stand before a row", lambda: model(ids, attention_mask=after, use_cache=True))
    refused("must be an MHCCache", lambda: model(ids, past_key_values=DynamicCache()))
    refused("leave out position_ids", lambda: model(ids, position_ids=ids, use_cache=True))
    torch.testing.assert_close(model(ids, return_dict=False)[0], model(ids).logits)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, 3:])

    first = model(ids[:, :3], use_cache=True)
    cache = first["cache" if "cache" in first else "past_key_values"]
    other = copy.deepcopy(cache)
    other.batch_repeat_interleave(2)
    other.batch_select_indices(torch.tensor([3, 0]))
    rest = model(ids[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(rest, model(ids).logits[:, 3:])
    torch.testing.assert_close(model(ids[:, 3:].flip(0), past_key_values=other).logits, rest.flip(0))

    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).vocab_size == model.config.mhc["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = ["the quick brown", "fox"]
    generate = pipeline("text-generation", model=folder, trust_remote_code=True)
    together = generate(texts, batch_size=2, max_new_tokens=5, do_sample=False, return_tensors=True)
    for text, (row,) in zip(texts, together):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=5, do_sample=False)
        ids = [i for i in row["generated_token_ids"] if i != tokenizer.pad_token_id]
        assert ids == [i for i in alone[0].tolist() if i != tokenizer.pad_token_id]


if __name__ == "__main__":
    for path in sys.argv[1:]:
        check(path)
    check_edges(sys.argv[1])
