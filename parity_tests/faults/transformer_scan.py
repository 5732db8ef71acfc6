"""Faults seeded in prefix scans, in the model over them, and in its streams."""

from collections.abc import Iterator

import jax.numpy as jnp

from mhc_jax.ops import prefix_scan
from mhc_jax.ops.prefix_scan import Counter
from parity_tests.mutations import Mutation, op

SCAN = "mhc_jax.ops.prefix_scan:"
MODEL = "mhc_jax.nn.transformer_scan:TransformerScan."


def mutations() -> Iterator[Mutation]:
    yield op("a fold from left to right", "prefix_scan.prefixes", _left_fold, "parallel")
    yield op("each prefix one element early", "prefix_scan.prefixes", _early, "sequential")
    for name, form in (("_parallel", "parallel"), ("_blelloch", "blelloch"), ("_sequential", "sequential")):
        case = f"prefix_scan.prefixes {form}"
        yield Mutation(f"newer before older, {form}", f"{SCAN}{name}", _swapped, "ops", case)
    classical = "prefix_scan.prefixes blelloch"
    yield Mutation("flags lost, zeros merged", f"{SCAN}_blelloch", _published, "ops", classical)
    swapped = "prefix_scan.prefixes legacy_blelloch"
    yield Mutation("the published sweep repaired", f"{SCAN}_legacy", _not_swapped, "ops", swapped)
    counter = "prefix_scan.prefixes sequential"
    yield Mutation("the counter forgets its folds", f"{SCAN}Counter.push", _no_folds, "ops", counter)
    labels, streams = "transformer_scan, labels", "transformer_scan over streams"
    yield Mutation("the first chunk sees a prefix", f"{MODEL}_read_all", _one_text, "models", labels)
    yield Mutation("the left half is the summary", f"{MODEL}_merged", _left_half, "models", labels)
    yield Mutation("sides swapped", f"{MODEL}_merged", _sides_swapped, "models", streams)
    yield Mutation("a prefix is read unmarked", f"{MODEL}_marked", _unmarked, "models", streams)
    yield Mutation("prefixes one chunk late", f"{MODEL}_prefixes", _late, "models", labels)
    losses = "transformer_scan, auxiliary losses"
    yield Mutation("merges leave no auxiliary losses", f"{MODEL}_prefixes", _unpenalised, "models", losses)
    yield Mutation("the unfinished chunk is lost", f"{MODEL}_step", _stale_chunk, "decode", streams)


def _left_fold(healthy):
    def fold(combine, x, form):
        found = [x[:1]]
        for i in range(1, len(x)):
            found.append(combine(found[-1], x[i : i + 1]))
        return jnp.concatenate(found)

    return fold


def _early(healthy):
    return lambda combine, x, form: jnp.roll(healthy(combine, x, form=form), 1, axis=0)


def _swapped(healthy):
    return lambda combine, x: healthy(lambda older, newer: combine(newer, older), x)


def _published(healthy):
    return lambda combine, x: prefix_scan._legacy(combine, x, swapped=False)


def _not_swapped(healthy):
    def repaired(combine, x, *, swapped):
        return healthy(combine, x, swapped=False)

    return repaired


def _no_folds(healthy):
    """Folds hold the trees alone."""

    def push(self, combine, x, due_R):
        after, prefix = healthy(Counter(self.count_R, self.trees, self.trees), combine, x, due_R)
        return after, prefix

    return push


def _one_text(healthy):
    def read(self, z_BRTD, scope):
        noisy = z_BRTD.at[:, 0, : z_BRTD.shape[2] // 2].set(z_BRTD[:, 0, z_BRTD.shape[2] // 2 :])
        rows = [self.reader(noisy[:, i], None, scope.replace(positions_BT=jnp.arange(z_BRTD.shape[2])[None]))[0]
                for i in range(z_BRTD.shape[1])]  # fmt: skip
        return jnp.stack(rows, axis=1)

    return read


def _left_half(healthy):
    def merged(self, older, newer, scope):
        return healthy(self, newer, older, scope)

    return merged


def _sides_swapped(healthy):
    def merged(self, older, newer, scope):
        shift_D = self.sides.table[...][1] - self.sides.table[...][0]
        return healthy(self, older + shift_D, newer - shift_D, scope)

    return merged


def _unmarked(healthy):
    return lambda self, prefixes: prefixes


def _late(healthy):
    return lambda self, leaves_BRCD, scope: jnp.roll(healthy(self, leaves_BRCD, scope), 1, axis=1)


def _unpenalised(healthy):
    return lambda self, leaves_BRCD, scope: healthy(self, leaves_BRCD, scope.replace(penalties={}))


def _stale_chunk(healthy):
    def step(self, state, x_BD, leaf_BD, count_B, scope):
        after, y_BD = healthy(self, state, x_BD, leaf_BD, count_B, scope)
        return after | {"chunk": jnp.zeros_like(after["chunk"])}, y_BD

    return step
