"""Every number by which the suite judges, each with its reason. There is none elsewhere."""

# JAX's float32 error may be this many times PyTorch's own, both against the float64 truth. Two correct
# implementations that only order their sums differently were measured to stay within 2 of each other on all
# but the smallest tensors, where a single rounding more or less decides; 4 leaves room for that and for
# nothing else: a wrong epsilon, a dropped bias or a bfloat16 pass is off by 10 to 10^7.
RATIO = 4.0

# PyTorch's own error is the largest of this many runs on inputs that differ by a rounding. One run of a scalar may
# be exact by luck (an error of 0 was met in one of ten), and would then condemn any other correct rounding.
SAMPLES = 5

# Where PyTorch is (nearly) exact in all samples the ratio means nothing; an error of this many units in the last
# place passes on its own. The longest chain of one op, eight log-domain Sinkhorn iterations of extreme logits, was
# measured at 5.
FEW_ULP = 8.0

# Where sums cancel to almost nothing, float64 loses as many digits as float32: it may be as far from the truth as
# PyTorch's float32 (times RATIO), less the 29 bits that float64 has more.
FLOAT64_PER_FLOAT32 = 2.0**-29

# Float64 against float64, relative L2. Rounding is 1e-16; the chains here multiply it by at most a few hundred.
# Deliberate faults move at least one tensor by more than 1e-9.
FLOAT64 = {
    "ops": 1e-13,  # one op and its derivative: tens of roundings
    "modules": 1e-12,  # a site: an op after another
    "models": 1e-12,  # whole models of two or three layers
    "gradients": 1e-11,  # sums over batch, time and layers, some of which cancel
    "optimizer": 1e-12,  # sqrt and divisions by a small second moment
    "trajectory": 1e-10,  # a hundred steps, each amplifying the rounding of those before
    "decode": 1e-12,  # whole models
    "checkpoint": 1e-10,  # sums over up to 50,000 logits and many layers
}

# Golden numbers are the original's own float32 results: its rounding, not ours, relative to the largest entry.
GOLDEN = 5e-6

# Largest entry of a golden tensor below which it is noise of the original (a gradient that cancels to zero).
GOLDEN_SMALLEST = 1e-3
