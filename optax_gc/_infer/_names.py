"""Names of primitives by what they do, for where nothing else about them matters."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The result is the operand in the same place, perhaps in another dtype, on another device or with another sign.
SAME = _names(
    """convert_element_type reduce_precision copy copy_p neg real imag conj optimization_barrier name
    sharding_constraint mesh_cast reshard device_put layout_constraint pvary pcast pbroadcast"""
)
# Each element of the result is a function of the elements in its place. None of these is a sum or a product.
ELEMENTWISE = _names(
    """abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh digamma eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p log2 logistic lt max min ne
    nextafter not one_minus_square or pow regularized_incomplete_beta rem round rsqrt shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square tan tanh xor zeta"""
)
# Of those, the ones that make zero of zero.
KEEP_ZERO = _names(
    """abs asin asinh atan atanh cbrt ceil erf expm1 floor integer_pow log1p round sign sin sinh sqrt square tan tanh"""
)
# Only the axes of the first operand move.
LAYOUT = _names("transpose reshape broadcast_in_dim slice pad rev tile squeeze expand_dims")
REDUCTIONS = _names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin")
# Functions of whole axes that are no sums.
NONLINEAR = _names("sort top_k approx_top_k cummax cummin cumprod cumlogsumexp reduce_window_max reduce_window_min")
# What ends a unit.
ENDING = ELEMENTWISE | NONLINEAR | _names("reduce_max reduce_min reduce_prod argmax argmin")
# Followed by rules of their own, and folded where all operands are constants.
FOLDED = _names(
    """add add_any sub mul div select_n concatenate split stack unstack iota dynamic_slice dynamic_update_slice gather
    dot_general cumsum scatter scatter-add clz population_count"""
)
# Functions that are walked as if they stood in the place of their call.
CALLS = _names(
    """jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
    custom_lin custom_vmap_call composite eval_jaxpr xla_call"""
)
# What a rule must see though no operand holds anything of the params.
ALWAYS = CALLS | _names("cond scan while shard_map axis_index")

# Where a whole sentence must fit into a column.
# Where weights meet the data.
CONTRACTIONS = frozenset({"conv_general_dilated", "dot_general", "ragged_dot", "ragged_dot_general"})
_SHORT = {"conv_general_dilated": "conv", "reduce_window_max": "max_pool"}


def short(name: str) -> str:
    """What a reason calls an operation."""
    return _SHORT.get(name, name)
