"""Runs the JAX side of a benchmark; see :mod:`train.benchmark.worker`."""

import dataclasses

import jax
import jax.numpy as jnp

import mhc_jax
from mhc_jax.functional import param_info
from mhc_jax.ops.diag_ssm import diag_ssm
from train.benchmark.worker import Spec, Step, serve
from train.config import RunConfig
from train.update.optimizer import make_optimizer
from train.update.step import Batch, init_state, make_train_step

TOTAL_STEPS = 1_000_000  # of the schedule; never reached


def random_batch(config: RunConfig) -> Batch:
    """One batch of random tokens, always the same."""
    shape = (config.data.batch_size, config.data.seq_len + 1)
    tokens = jax.random.randint(jax.random.key(0), shape, 0, config.model.vocab_size, jnp.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def train(spec: Spec) -> Step:
    """Whole optimizer steps, donated, on one fixed random batch, from the weights in ``spec["weights"]``."""
    config = RunConfig.from_dict(spec["config"])
    optimizer = make_optimizer(config.optim, TOTAL_STEPS, param_info(config.model))
    state = dataclasses.replace(init_state(config, optimizer), params=mhc_jax.load(spec["weights"])[1])
    batch = random_batch(config)
    train_step = jax.jit(make_train_step(config, optimizer), donate_argnums=0)

    def step():
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))

    return step


def decode(spec: Spec) -> Step:
    """Greedy decoding of ``spec["tokens"]`` new tokens after a prompt, prefill included."""
    config, params = mhc_jax.load(spec["weights"])
    prompt = jax.random.randint(jax.random.key(0), (spec["batch"], spec["prompt"]), 0, config.vocab_size, jnp.int32)

    def step():
        return mhc_jax.generate(
            config, params, prompt, max_new_tokens=spec["tokens"], temperature=0.0
        ).block_until_ready()

    return step


def scan(spec: Spec) -> Step:
    """The diagonal recurrence, value and all gradients for a given cotangent."""
    shape, width = (spec["batch"], spec["time"], spec["width"]), spec["width"]
    keys = jax.random.split(jax.random.key(0), 6)
    u, cotangent = (jax.random.normal(key, shape) for key in keys[:2])
    gains = [jax.random.normal(key, (width,)) for key in keys[2:]]

    @jax.jit
    def value_and_gradients(u, gains, cotangent):
        y, pull = jax.vjp(lambda u, *gains: diag_ssm(u, *gains, form=spec["form"], chunk=spec["chunk"])[0], u, *gains)
        return y, pull(cotangent)

    return lambda: jax.block_until_ready(value_and_gradients(u, gains, cotangent))


def triad(spec: Spec) -> Step:
    """``x + 3 y`` on arrays of ``spec["size"]`` float32 numbers: two read, one written."""
    x, y = jnp.ones(spec["size"]), jnp.ones(spec["size"])
    add = jax.jit(lambda x, y: x + 3 * y)
    return lambda: add(x, y).block_until_ready()


def compilation(spec: Spec) -> Step:
    """Tracing and compiling a whole training step, nothing kept from the call before."""
    config = RunConfig.from_dict(spec["config"])
    jax.config.update("jax_enable_compilation_cache", False)
    optimizer = make_optimizer(config.optim, TOTAL_STEPS, param_info(config.model))
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    tokens = jax.ShapeDtypeStruct((config.data.batch_size, config.data.seq_len), jnp.int32)

    def step():
        jax.clear_caches()
        jax.jit(make_train_step(config, optimizer)).lower(state, {"inputs": tokens, "targets": tokens}).compile()

    return step


KINDS = {"train": train, "decode": decode, "scan": scan, "triad": triad, "compile": compilation}


def build(spec: Spec) -> Step:
    """The step of ``spec["kind"]``."""
    return KINDS[spec["kind"]](spec)


def peak() -> int | None:
    """Bytes of device memory at their highest; None where the backend does not say (the CPU)."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    serve(build, peak)
