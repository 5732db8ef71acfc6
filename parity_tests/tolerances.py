"""Every number by which the suite judges, each with its reason. There is none elsewhere."""

# JAX's float32 error may be this many times PyTorch's own, both against the float64 truth. Two correct
# implementations that only order their sums differently were measured to stay within 2 of each other on all
# but the smallest tensors, where a single rounding more or less decides; 4 leaves room for that and for
# nothing else: a wrong epsilon, a dropped bias or a bfloat16 pass is off by 10 to 10^7.
RATIO = 4.0

# PyTorch's own error is the largest of this many runs on inputs that differ by a rounding. One run of a scalar may
# be exact by luck (an error of 0 was met in one of ten), and would then condemn any other correct rounding.
SAMPLES = 5

# As many where JAX is beyond RATIO, but by less than that once more: where a tiny network amplifies rounding, most runs
# of either framework are far better than the worst. Of twelve runs of mhc_newton with gla PyTorch's median error of one
# gradient was 1e-6 and its largest 1.1e-5, JAX's 3e-6 and 6e-6.
MORE_SAMPLES = 20

# Where PyTorch is (nearly) exact in all samples the ratio means nothing; an error of this many units in the last
# place passes on its own. A gradient by one number, a sum over batch, time and streams, was measured between 0.2 and 7
# in PyTorch over eight samples and between 0.3 and 8.2 in JAX, and the longest chain of one op, eight log-domain
# Sinkhorn iterations of extreme logits, at 5.
FEW_ULP = 12.0

# Where sums cancel to almost nothing, float64 loses as many digits as float32: JAX's float64 may be as far from the
# truth as PyTorch's float32 (times RATIO), less the 29 bits that float64 has more, and the other way round JAX's
# float32 as far as its float64 and those 29 bits, where PyTorch happened on roundings that cancel too.
FLOAT64_PER_FLOAT32 = 2.0**-29

# The truth is a run in float64, too: of two of these, both round, where of float32 beside it one does.
BOTH_ROUND = 2.0

# A gradient this much smaller than the largest one of its case, in float64, is zero by symmetry, and its rounding is
# measured relative to that largest one.
VANISHING = 1e-13

# Float64 against float64, relative L2. Rounding is 1e-16; each bound is some ten times the worst that was measured
# where nothing cancels. Deliberate faults move at least one tensor by more than 1e-9.
FLOAT64 = {
    "ops": 1e-14,  # one op and its derivative: tens of roundings
    "modules": 1e-13,  # an op after another
    "models": 1e-13,  # whole models of two layers
    "gradients": 1e-12,  # sums over batch, time and layers
    "optimizer": 1e-13,  # square roots and divisions by a small second moment
    "trajectory": 1e-12,  # a hundred steps, each amplifying the rounding of those before
    "decode": 1e-13,  # whole models
    "matrix": 1e-12,  # whole models, every topology
    "oracles": 1e-12,  # one site or whole models of two layers, and sums over batch and time
    "checkpoint": 1e-10,  # sums over up to 50,000 logits, hundreds of channels and many layers
}

# Golden numbers are the original's own float32 results, so the roundings of two float32 runs may add up: largest
# distance, relative to the largest entry of the tensor. PyTorch's mirror was measured at 5e-6, JAX at 6e-6.
GOLDEN = 1e-5

# Published matrices are printed with eight decimals.
GOLDEN_DIGITS = 1e-8

# Size of a golden gradient below which its rounding is that of the terms which cancel in it: one of 1.4e-3 was seen to
# differ by 1.8e-8, on a processor without AVX-512.
GOLDEN_SMALLEST = 2e-3

# Stream diversity is a mean of |cosine - 0 or 1|: its rounding is that of numbers near 1, even where it is 0.
GOLDEN_DIVERSITY = 1.0
