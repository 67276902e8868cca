"""One function in many spellings: the axes of its weights are those of the function, however it is written.

A family is a table of spellings of one function, in `spelled(family, table, args, **params)`; its truth is written
down once, by what the function is. In `HARD` a spelling may be left alone; in `CASES` it must be read.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from corpus._case import Case
from corpus._leaves import alone, case, sharded, spelled, tokens, w, with_gradient, x_
from corpus._loops import LOOPS, N, dense, item, parts, scan, steps, while_loop

tanh = jnp.tanh
_X = x_(2, 5)


def _through(body: Any, start: Any = lambda x: x) -> dict[str, Any]:
    """`w` is the stack that is gone through, from `start(x)`."""
    return {name: lambda x, w, loop=loop: loop(body, start(x), w) for name, loop in LOOPS.items()}


def _residual(h: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    return h + tanh(h @ w["up"]) @ w["down"]


def _pending(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    """The residual is added where the next layer starts: it is outside of the loop for the last."""

    def body(at: Any, w: Any) -> Any:
        h = at[0] + at[1]
        return h, tanh(h @ w["up"]) @ w["down"]

    return sum(scan(body, (x, jnp.zeros_like(x)), w))


@jax.jit
def _residual_of_stack(h: jax.Array, w: dict[str, jax.Array], n: Any) -> jax.Array:
    return _residual(h, item(w, n))


_BLOCKS = {"up": w("b4 i6 o8"), "down": w("b4 i8 o6")}
_RESIDUALS = _through(_residual) | {
    "residual outside of the loop": _pending,
    "masked steps": lambda x, w: lax.fori_loop(
        0, N + 2, lambda i, h: jnp.where(i < N, _residual(h, item(w, jnp.minimum(i, N - 1))), h), x
    ),
    "switch": lambda x, w: lax.fori_loop(
        0, N, lambda i, h: lax.switch(i, [functools.partial(_residual, w=part) for part in parts(w)], h), x
    ),
    "jitted helper of the stack": lambda x, w: steps(lambda i, h: _residual_of_stack(h, w, i), x),
    "named": lambda x, w: functools.reduce(jax.named_call(_residual), parts(w), x),
}

_DIFFERENTIATED = {name: f for name, f in _RESIDUALS.items() if name != "while_loop"}

# A sum over parts: every entry of a unit's parts is its input.

_PARTS = x_(4, 2, 5)


def _adding(y: Any, at: Any) -> Any:
    return y + at[0] @ at[1]


_SUMS = {
    "einsum": lambda x, w: jnp.einsum("pbi,pio->bo", x, w),
    "tensordot": lambda x, w: jnp.tensordot(x.swapaxes(0, 1), w, 2),
    "merged": lambda x, w: x.swapaxes(0, 1).reshape(2, 20) @ w.reshape(20, 6),
    "joined": lambda x, w: jnp.concatenate(list(x), 1) @ jnp.concatenate(list(w)),
    "sum of a list": lambda x, w: sum(x[i] @ w[i] for i in range(N)),
    "in pairs": lambda x, w: (x[0] @ w[0] + x[1] @ w[1]) + (x[2] @ w[2] + x[3] @ w[3]),
    "masked": lambda x, w: steps(lambda i, y: y + jnp.where(i < N, x[i] @ w[i], 0), 0.0),
    "masked in a loop": lambda x, w: lax.fori_loop(
        0,
        N + 1,
        lambda i, y: y + jnp.where(i < N, x[jnp.minimum(i, N - 1)] @ w[jnp.minimum(i, N - 1)], 0),
        jnp.zeros((2, 6)),
    ),
    "halves of merged": lambda x, w: (
        x[:2].swapaxes(0, 1).reshape(2, 10) @ w[:2].reshape(10, 6) + jnp.einsum("pbi,pio->bo", x[2:], w[2:])
    ),
    "psum": lambda x, w: sharded(
        lambda x, w: lax.psum(jnp.einsum("pbi,pio->bo", x, w), "model"), (P("model"), P("model")), P()
    )(x, w),
}


def _while(test: Any, step: int, start: int) -> Any:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        body = lambda at: (at[0] + step, at[1] + x[at[0]] @ w[at[0]])  # noqa: E731
        return lax.while_loop(lambda at: test(at[0]), body, (start, jnp.zeros((2, 6))))[1]

    return f


_SUMS |= {
    "while at most": _while(lambda i: i <= N - 1, 1, 0),
    "while unequal": _while(lambda i: i != N, 1, 0),
    "while greater": _while(lambda i: i > -1, -1, N - 1),
    "while at least": _while(lambda i: i >= 0, -1, N - 1),
}
_SUMS |= {name: lambda x, w, loop=loop: loop(_adding, jnp.zeros((2, 6)), (x, w)) for name, loop in LOOPS.items()}

# One kernel in chunks, along what it sums over and along its units.

_CHUNKED_IN = {
    "whole": lambda x, w: x @ w,
    "slices": lambda x, w: sum(x[:, 5 * i : 5 * i + 5] @ w[5 * i : 5 * i + 5] for i in range(N)),
    "split": lambda x, w: sum(a @ b for a, b in zip(jnp.split(x, N, 1), jnp.split(w, N), strict=True)),
    "fori_loop": lambda x, w: lax.fori_loop(
        0,
        N,
        lambda i, y: y + lax.dynamic_slice_in_dim(x, 5 * i, 5, 1) @ lax.dynamic_slice_in_dim(w, 5 * i, 5),
        jnp.zeros((2, 6)),
    ),
    "scan": lambda x, w: scan(_adding, jnp.zeros((2, 6)), (x.reshape(2, N, 5).swapaxes(0, 1), w.reshape(N, 5, 6))),
    "scan over starts": lambda x, w: scan(
        lambda y, at: y + lax.dynamic_slice_in_dim(x, at, 5, 1) @ lax.dynamic_slice_in_dim(w, at, 5),
        jnp.zeros((2, 6)),
        5 * jnp.arange(N),
    ),
    "uneven": lambda x, w: x[:, :3] @ w[:3] + (x[:, 3:11] @ w[3:11] + x[:, 11:] @ w[11:]),
    "row by row": lambda x, w: scan(lambda y, at: y + at[0][:, None] @ at[1][None], jnp.zeros((2, 6)), (x.T, w)),
    "mesh": lambda x, w: sharded(lambda x, w: lax.psum(x @ w, "model"), (P(None, "model"), P("model")), P())(x, w),
}
_CHUNKED_OUT = {
    "whole": lambda x, w: tanh(x @ w),
    "slices": lambda x, w: jnp.concatenate([dense(x, w[:, i : i + 5]) for i in range(0, 20, 5)], 1),
    "map": lambda x, w: lax.map(lambda i: dense(x, lax.dynamic_slice_in_dim(w, 5 * i, 5, 1)), jnp.arange(N)),
    "scan": lambda x, w: lax.scan(lambda _, part: (None, dense(x, part)), None, jnp.moveaxis(w.reshape(6, N, 5), 1, 0))[
        1
    ],
    "written to a buffer": lambda x, w: lax.fori_loop(
        0,
        N,
        lambda i, out: lax.dynamic_update_slice_in_dim(
            out, dense(x, lax.dynamic_slice_in_dim(w, 5 * i, 5, 1)), 5 * i, 1
        ),
        jnp.zeros((2, 20)),
    ),
    "exponentials added up": lambda x, w: lax.fori_loop(
        0,
        N,
        lambda i, z: z + jnp.exp(x @ lax.dynamic_slice_in_dim(w, 5 * i, 5, 1)).sum(-1),
        jnp.zeros(2),
    ),
    "a unit at a time": lambda x, w: lax.map(lambda i: tanh(x @ w[:, i]), jnp.arange(20)),
    "mesh": lambda x, w: sharded(dense, (P(), P(None, "model")), P(None, "model"))(x, w),
    "read in a mesh": lambda x, w: sharded(tanh, P(None, "model"), P(None, "model"))(x @ w),
    "outputs added up over a mesh": lambda x, w: sharded(lambda y: lax.psum(y, "model"), P(None, "model"), P())(x @ w),
}

# Over a mesh of two devices.

_ROWS, _COLUMNS, _WHOLE = P("model"), P(None, "model"), P()


def _gathered(array: jax.Array, axis: int = 0) -> jax.Array:
    return lax.all_gather(array, "model", axis=axis, tiled=True)


def _mesh(f: Any, *specs: P, x: P = _WHOLE, out: P = _WHOLE) -> Any:
    """`f(x, up, down)` on blocks."""
    return lambda a, up, down: sharded(f, (x, *specs), out, check_vma=False)(a, up, down)


_SQUARE = jax.sharding.AbstractMesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
_BOTH = P(("a", "b"))


def _over_both(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    def run(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        y = lax.psum_scatter(tanh(x @ up) @ down, ("a", "b"), scatter_dimension=1, tiled=True)
        return lax.all_gather(y, ("a", "b"), axis=1, tiled=True)

    specs = (P(), P(None, ("a", "b")), _BOTH)
    return jax.shard_map(run, mesh=_SQUARE, in_specs=specs, out_specs=P(), check_vma=False)(x, up, down)


def _blocks_added_up(x: jax.Array, w: jax.Array) -> jax.Array:
    return sharded(lambda x, w: x @ lax.psum(w, "model"), (P(), P("model")), P())(x, w)


def _one_in_the_other(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    def inner(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return lax.psum(tanh(x @ up) @ down, ("a", "b"))

    def outer(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        specs = (P(), P(None, "b"), P("b"))
        run = jax.shard_map(inner, in_specs=specs, out_specs=P(), axis_names={"b"}, check_vma=False)
        return run(x, up, down)

    specs = (P(), P(None, "a"), P("a"))
    run = jax.shard_map(outer, mesh=_SQUARE, in_specs=specs, out_specs=P(), axis_names={"a"}, check_vma=False)
    return run(x, up, down)


def _four(x: jax.Array, w: jax.Array) -> jax.Array:
    mesh = jax.sharding.AbstractMesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P(None, "model"), P("model"))
    return jax.shard_map(lambda x, w: lax.psum(x @ w, "model"), mesh=mesh, in_specs=specs, out_specs=P())(x, w)


_NOT_PADDED = np.array([1, 2, 3, 4, 6, 7, 8, 9])
_MESHES = {
    "over two axes": _over_both,
    "one in the other": _one_in_the_other,
    "blocks gathered on an axis of their own": _mesh(
        lambda x, up, down: tanh(x @ up) @ lax.all_gather(down, "model", axis=1).swapaxes(0, 1).reshape(8, 4),
        _WHOLE,
        _ROWS,
    ),
    "weights turned in blocks": lambda x, up, down: (
        tanh(x @ sharded(lambda w: w[:, ::-1], P(None, "model"), P(None, "model"))(up)) @ down
    ),
    "weights padded in blocks": lambda x, up, down: (
        tanh(
            (x @ sharded(lambda w: jnp.pad(w, ((0, 0), (1, 0))), P(None, "model"), P(None, "model"))(up))[
                :, _NOT_PADDED
            ]
        )
        @ down
    ),
    "averaged weights": _mesh(lambda x, up, down: tanh(x @ lax.pmean(up, "model")) @ down, _WHOLE, _WHOLE),
    "scattered one by one": _mesh(
        lambda x, up, down: lax.psum_scatter(
            (tanh(x @ up) @ down).reshape(2, 2, 2), "model", scatter_dimension=1, tiled=False
        ),
        _COLUMNS,
        _ROWS,
        out=_COLUMNS,
    ),
    "meshes of two sizes": lambda x, up, down: _four(sharded(dense, (P(), _COLUMNS), _COLUMNS)(x, up), down),
    "no mesh": lambda x, up, down: tanh(x @ up) @ down,
    "psum": _mesh(lambda x, up, down: lax.psum(tanh(x @ up) @ down, "model"), _COLUMNS, _ROWS),
    "psum_scatter": _mesh(
        lambda x, up, down: lax.psum_scatter(tanh(x @ up) @ down, "model", scatter_dimension=1, tiled=True),
        _COLUMNS,
        _ROWS,
        out=_COLUMNS,
    ),
    "psum_scatter, then all_gather": _mesh(
        lambda x, up, down: _gathered(lax.psum_scatter(tanh(x @ up) @ down, "model", scatter_dimension=0, tiled=True)),
        _COLUMNS,
        _ROWS,
    ),
    "inputs summed over": _mesh(
        lambda x, up, down: lax.psum(tanh(lax.psum(x @ up, "model")) @ down, "model") / lax.psum(1, "model"),
        _ROWS,
        _WHOLE,
        x=_COLUMNS,
    ),
    "outputs gathered": _mesh(lambda x, up, down: _gathered(_gathered(tanh(x @ up), 1) @ down, 1), _COLUMNS, _COLUMNS),
    "weights gathered": _mesh(
        lambda x, up, down: tanh(x @ _gathered(up)) @ _gathered(down, 1), _ROWS, _COLUMNS, x=_ROWS, out=_ROWS
    ),
    "activations gathered": _mesh(
        lambda x, up, down: lax.psum(tanh(_gathered(x) @ up) @ down, "model"), _COLUMNS, _ROWS, x=_ROWS
    ),
    "all_to_all": _mesh(
        lambda x, up, down: (
            lax.all_to_all(tanh(lax.all_to_all(x @ up, "model", 1, 0, tiled=True)), "model", 0, 1, tiled=True) @ down
        ),
        _WHOLE,
        _WHOLE,
        x=_ROWS,
        out=_ROWS,
    ),
    "mean of replicas": _mesh(lambda x, up, down: lax.pmean(tanh(x @ up) @ down, "model"), _WHOLE, _WHOLE),
    "permuted ring": _mesh(
        lambda x, up, down: lax.psum(tanh(lax.ppermute(x, "model", [(0, 1), (1, 0)]) @ up) @ down, "model"),
        _COLUMNS,
        _ROWS,
    ),
    "block of a whole weight": _mesh(
        lambda x, up, down: lax.psum(
            tanh(x @ up) @ lax.dynamic_slice_in_dim(down, lax.axis_index("model") * up.shape[1], up.shape[1]), "model"
        ),
        _COLUMNS,
        _WHOLE,
    ),
    "in a jitted helper": lambda x, up, down: jax.jit(
        _mesh(lambda x, up, down: lax.psum(tanh(x @ up) @ down, "model"), _COLUMNS, _ROWS)
    )(x, up, down),
    "in a remat": lambda x, up, down: jax.checkpoint(
        _mesh(lambda x, up, down: lax.psum(tanh(x @ up) @ down, "model"), _COLUMNS, _ROWS)
    )(x, up, down),
}


def _mesh_layers(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    block = _mesh(lambda x, up, down: lax.psum(tanh(x @ up) @ down, "model"), _COLUMNS, _ROWS)
    return scan(lambda h, w: h + block(h, w["up"], w["down"]), x, w)


def _layers_in_mesh(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    def run(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
        return scan(lambda h, w: h + lax.psum(tanh(h @ w["up"]) @ w["down"], "model"), x, w)

    return sharded(run, (P(), {"up": P(None, None, "model"), "down": P(None, "model")}), P(), check_vma=False)(x, w)


def _layers_gathered(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    def run(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
        return scan(lambda h, w: _residual(h, jax.tree.map(_gathered, w)), x, w)

    return sharded(run, (_ROWS, _COLUMNS), _ROWS, check_vma=False)(x, w)


_RESIDUALS |= {
    "loop over meshes": _mesh_layers,
    "outputs mixed by constants": lambda x, w: scan(
        lambda h, w: h + jnp.exp((h @ w["up"]) @ jnp.tri(8)) @ w["down"], x, w
    ),
    "products read in a mesh": lambda x, w: scan(
        lambda h, w: h + sharded(tanh, _COLUMNS, _COLUMNS)(h @ w["up"]) @ w["down"], x, w
    ),
    "mesh over the loop": _layers_in_mesh,
    "mesh over the loop, weights gathered": _layers_gathered,
}
_EXPERTS = {
    "einsum": lambda x, w: tanh(jnp.einsum("ebi,eio->ebo", x, w)),
    "vmap": lambda x, w: jax.vmap(dense)(x, w),
    "map": lambda x, w: lax.map(lambda at: dense(*at), (x, w)),
    "scan": lambda x, w: lax.scan(lambda _, at: (None, dense(*at)), None, (x, w))[1],
    "stacked": lambda x, w: jnp.stack([dense(x[e], w[e]) for e in range(N)]),
    "vmap over an index": lambda x, w: jax.vmap(lambda e: dense(x[e], w[e]))(jnp.arange(N)),
    "scan over numbers": lambda x, w: lax.scan(lambda _, e: (None, dense(x[e], w[e])), None, jnp.arange(N))[1],
    "written to a buffer": lambda x, w: lax.fori_loop(
        0, N, lambda e, out: out.at[e].set(dense(x[e], w[e])), jnp.zeros((N, 2, 6))
    ),
    "vmap of one unit": lambda x, w: tanh(jax.vmap(jax.vmap(jnp.matmul, (None, -1), -1))(x, w)),
    "grouped convolution": lambda x, w: tanh(
        lax.conv_general_dilated(
            x.transpose(1, 0, 2).reshape(2, 1, 20),
            w.transpose(1, 0, 2).reshape(1, 5, 24),
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=N,
        )
    ),
    "mesh": lambda x, w: sharded(jax.vmap(dense), (_ROWS, _ROWS), _ROWS)(x, w),
    "mesh, all_to_all": lambda x, w: sharded(
        lambda x, w: jax.vmap(dense)(lax.all_to_all(x, "model", 0, 0, tiled=True), w), (_ROWS, _ROWS), _ROWS
    )(x, w),
    "ragged_dot": lambda x, w: tanh(lax.ragged_dot(x.reshape(8, 5), w, jnp.full(N, 2, jnp.int32))),
}


def _block_diagonal(x: jax.Array, w: jax.Array) -> jax.Array:
    blocks = x.transpose(1, 0, 2)[:, :, None] * jnp.eye(N)[:, :, None]
    return tanh(blocks.reshape(2, N, 20) @ w.reshape(20, 6))


# Scanned or not, the same batch and out: one layer, and a stack of four.

_TIMES_HEADS = x_(2, 3, 5)
_LAYERS: dict[str, tuple[Any, Any, str]] = {
    "heads in": (
        lambda h, w: tanh(jnp.einsum("bti,ihk->bthk", h, w)).sum(-1) @ jnp.ones((2, 5)),
        x_(2, 3, 5),
        "i5 o2 o3",
    ),
    "heads first": (
        lambda h, w: tanh(jnp.einsum("bti,hik->bthk", h, w)).sum(-1) @ jnp.ones((2, 5)),
        x_(2, 3, 5),
        "o2 i5 o3",
    ),
    "heads out": (lambda h, w: tanh(jnp.einsum("bhk,hkd->bd", h, w))[:, None] * h, x_(2, 3, 5), "i3 i5 o5"),
    "experts": (lambda h, w: tanh(jnp.einsum("ebi,eio->ebo", h, w)), x_(3, 2, 5), "b3 i5 o5"),
    "experts by vmap": (lambda h, w: jax.vmap(dense)(h, w), x_(3, 2, 5), "b3 i5 o5"),
    "groups last": (lambda h, w: tanh(jnp.einsum("bgi,iog->bgo", h, w)), x_(2, 3, 5), "i5 o5 b3"),
    "token mixing": (lambda h, w: tanh(jnp.einsum("bnd,nm->bmd", h, w)), x_(2, 7, 3), "i7 o7"),
    "convolution": (
        lambda h, w: tanh(lax.conv_general_dilated(h, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))),
        x_(2, 7, 5),
        "i3 i5 o5",
    ),
}
_STACKS = {
    "unrolled",
    "jitted helper",
    "remat",
    "scan",
    "chunks in chunks",
    "fori_loop",
    "while_loop",
    "scan over halves",
}
STACKS = [
    *(case(f"one layer, {name}", f, x, w=w(text)) for name, (f, x, text) in _LAYERS.items()),
    *(
        case(f"four layers, {name}: {loop}", lambda x, w, f=f, loop=loop: LOOPS[loop](f, x, w), x, w=w(f"b4 {text}"))
        for name, (f, x, text) in _LAYERS.items()
        for loop in sorted(_STACKS)
    ),
]

# A batch of products that is added up: the axis of the batch is an input as well, or nothing is said.


def products(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(jnp.matmul)(x, w)


def _added_in_a_buffer(y: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 4, lambda i, out: out.at[i].set(y[i]), jnp.zeros_like(y)).sum(0)


_ADDED: dict[str, Any] = {
    "sum": lambda y: y.sum(0),
    "mean": lambda y: y.mean(0),
    "einsum": lambda y: jnp.einsum("ebo->bo", y),
    "sum of a list": lambda y: sum(list(y)),
    "one by one": lambda y: y[0] + y[1] + y[2] + y[3],
    "halves": lambda y: y[:2].sum(0) + y[2:].sum(0),
    "stack": lambda y: jnp.stack(list(y)).sum(0),
    "concatenate, reshape": lambda y: jnp.concatenate(list(y)).reshape(4, 2, 6).sum(0),
    "where": lambda y: jnp.where(np.array([True, True, False, True])[:, None, None], y, 0).sum(0),
    "permuted": lambda y: y[np.array([2, 0, 3, 1])].sum(0),
    "flipped": lambda y: y[::-1].sum(0),
    "rolled onto itself": lambda y: y + jnp.roll(y, 1, 0),
    "differences": lambda y: y[1:] - y[:-1],
    "shifted onto itself": lambda y: sum(jnp.pad(y, ((lo, 1 - lo), (0, 0), (0, 0))) for lo in (0, 1)),
    "shifted by two": lambda y: sum(
        jnp.pad(y[..., ::step], ((lo, 2 - lo), (0, 0), (0, 0))) for lo, step in ((0, 1), (2, -1))
    ),
    "joined on the last axis, a scan": lambda y: scan(
        operator.add, jnp.zeros((2, 6)), jnp.concatenate(list(y), -1).reshape(4, 2, 6)
    ),
    "a jitted scan, a row of it": lambda y: jax.jit(lambda y: scan(operator.add, jnp.zeros((2, 6)), y))(y)[1:2],
    "padded": lambda y: jnp.pad(y, ((1, 2), (0, 0), (0, 0))).sum(0),
    "transposed": lambda y: y.transpose(1, 2, 0).sum(-1),
    "flattened": lambda y: y.reshape(4, 12).sum(0),
    "product with ones": lambda y: jnp.tensordot(np.ones(4, np.float32), y, 1),
    "product with a matrix": lambda y: jnp.einsum("fe,ebo->fbo", np.tri(4, dtype=np.float32), y),
    "times a constant": lambda y: (y * np.arange(4.0, dtype=np.float32)[:, None, None]).sum(0),
    "convolved with ones": lambda y: lax.conv_general_dilated(
        y.reshape(4, 1, 12).transpose(2, 1, 0), jnp.ones((1, 1, 4)), (1,), "VALID"
    ),
    "cumsum": lambda y: jnp.cumsum(y, 0),
    "last of cumsum": lambda y: jnp.cumsum(y, 0)[-1],
    "segment_sum": lambda y: jax.ops.segment_sum(y, np.array([0, 1, 0, 1]), 2),
    "reduce_window": lambda y: lax.reduce_window(y, 0.0, lax.add, (2, 1, 1), (1, 1, 1), "VALID"),
    "lax.reduce": lambda y: lax.reduce(y, 0.0, lax.add, (0,)),
    "fft": lambda y: jnp.abs(jnp.fft.fft(y, axis=0)),
    "rfft, back": lambda y: jnp.fft.irfft(jnp.fft.rfft(y, axis=0)[:2], axis=0),
    "at add": lambda y: jnp.zeros((2, 2, 6)).at[np.array([0, 1, 0, 1])].add(y),
    "buffer of a loop": _added_in_a_buffer,
    "scan": lambda y: scan(operator.add, jnp.zeros((2, 6)), y),
    "fori_loop": lambda y: lax.fori_loop(0, 4, lambda i, z: z + y[i], jnp.zeros((2, 6))),
    "while_loop": lambda y: while_loop(lambda i, z: z + y[i], jnp.zeros((2, 6))),
    "scan, all sums": lambda y: lax.scan(lambda z, v: (z + v, z + v), jnp.zeros((2, 6)), y)[1],
    "associative_scan": lambda y: lax.associative_scan(operator.add, y),
    "psum": lambda y: jax.vmap(lambda v: lax.psum(v, "e"), axis_name="e")(y)[0],
    "pmean": lambda y: jax.vmap(lambda v: lax.pmean(v, "e"), axis_name="e")(y)[0],
    "less its mean": lambda y: y - y.mean(0),
    "jitted helper": jax.jit(lambda y: y.sum(0)),
    "remat": jax.checkpoint(lambda y: y.sum(0)),
    "mesh": lambda y: sharded(lambda y: lax.psum(y.sum(0), "model"), P("model"), P())(y),
    "mesh, over the axis itself": lambda y: sharded(lambda y: lax.psum(y, "model"), P("model"), P())(y),
    "resized": lambda y: jax.image.resize(y, (2, 2, 6), "linear"),
}
_CLOSED: dict[str, Any] = {
    "tanh": lambda y, g: tanh(y).sum(0),
    "relu": lambda y, g: jax.nn.relu(y).mean(0),
    "square": lambda y, g: (y**2).sum(0),
    "abs": lambda y, g: jnp.abs(y).sum(0),
    "softmax": lambda y, g: jax.nn.softmax(y, -1).sum(0),
    "largest": lambda y, g: y.max(0),
    "logsumexp": lambda y, g: jax.nn.logsumexp(y, 0),
    "gated": lambda y, g: (y * g).sum(0),
    "gated by einsum": lambda y, g: jnp.einsum("ebo,eb->bo", y, g[..., 0]),
    "gated in a scan": lambda y, g: scan(lambda z, at: z + at[0] * at[1], jnp.zeros((2, 6)), (y, g)),
    "gated by a softmax": lambda y, g: jnp.einsum("ebo,eb->bo", y, jax.nn.softmax(g[..., 0], 0)),
    "normed": lambda y, g: (y / jnp.linalg.norm(y, axis=-1, keepdims=True)).sum(0),
    "tanh, in a scan": lambda y, g: scan(lambda z, v: z + tanh(v), jnp.zeros((2, 6)), y),
    "tanh, a cumsum": lambda y, g: jnp.cumsum(tanh(y), 0),
}
_ENSEMBLE, _GATES = x_(4, 2, 5), x_(4, 2, 1)


_SUM = jnp.zeros((2, 6))
_PAIR = (_SUM, _SUM)


def _carried(body: Any, carry: Any = _SUM) -> Any:
    """A loop over data and weights: what `body(carry, y)` makes of each product, what it carries and what it gives."""
    return lambda x, w: lax.scan(lambda c, at: body(c, at[0] @ at[1]), carry, (x, w))


# Sums of products of some steps: no unit has whole axes.
_IN_PART = {
    "sums of sums": lambda x, w: _carried(lambda c, y: ((c[0] + y, c[1] + c[0]), None), _PAIR)(x, w)[0][1],
    "a sum and the sums of its steps": lambda x, w: _carried(lambda c, y: ((c[0] + y, c[1] + c[0]), None), _PAIR)(x, w)[
        0
    ],
    "a sum a step late": lambda x, w: _carried(lambda c, y: ((y, c[1] + c[0]), None), _PAIR)(x, w)[0][1],
    "sums before the step": lambda x, w: _carried(lambda c, y: (c + y, c))(x, w)[1],
    "the step before, and this": lambda x, w: _carried(lambda c, y: (y, c + y))(x, w)[1],
    "the step before, twice, and this": lambda x, w: _carried(lambda c, y: (y + y, c + y[::-1]))(x, w)[1],
    "rows of this step and the one before, summed": lambda x, w: _carried(lambda c, y: (y, (c + y).sum(0)))(x, w)[1],
    "turned sums beside": lambda x, w: _carried(lambda c, y: ((c[0] + y, c[1] + c[0][:, ::-1]), None), _PAIR)(x, w)[0],
    "outputs turned": lambda x, w: _carried(lambda c, y: (c[:, ::-1] + y, None))(x, w)[0],
    "swapped": lambda x, w: _carried(lambda c, y: ((c[1], c[0] + y), None), _PAIR)(x, w)[0],
    "started again": lambda x, w: lax.fori_loop(
        0, 4, lambda i, c: lax.cond(i == 2, jnp.zeros_like, lambda c: c, c) + x[i] @ w[i], _SUM
    ),
    "times zero": lambda x, w: lax.fori_loop(
        0, 4, lambda i, c: lax.cond(i == 2, lambda c: 0 * c, lambda c: c, c) + x[i] @ w[i], _SUM
    ),
    "replaced and added to": lambda x, w: lax.fori_loop(
        0, 4, lambda i, c: jnp.where(i == 2, tanh(x[i]) @ w[i], c) + x[i] @ w[i], _SUM
    ),
}


def _summing(body: Any, start: Any = lambda x, w: _SUM) -> Any:
    """A loop over data alone: what `body(carry, y)` makes of each product with the one weight."""
    return lambda x, w: lax.scan(lambda c, x: body(c, x @ w), start(x, w), x)


def _wide(x: jax.Array) -> jax.Array:
    return jnp.tile(x[..., :3], 2)


_SOME = np.indices((5, 6)).sum(0) % 3 > 0
# One weight for all steps: each sum on the way has the same inputs.
_GIVEN = {
    "as they are carried on": _summing(lambda c, y: (c + y, c + y)),
    "only they": lambda x, w: _summing(lambda c, y: (c + y, c + y))(x, w)[1],
    "before the step": _summing(lambda c, y: (c + y, c)),
    "half of them": _summing(lambda c, y: (c + y, (c + y) / 2)),
    "leaking": _summing(lambda c, y: (0.9 * c + y, 0.9 * c + y)),
    "through tanh": _summing(lambda c, y: (c + y, tanh(c + y))),
    "from a product": _summing(lambda c, y: (c + y, c + y), lambda x, w: x[0] @ w),
    "a part of them, made again, through tanh": lambda x, w: lax.scan(
        lambda c, x: (c + x @ w, tanh((c + x @ w)[:, 0])), x[0] @ w, x
    ),
    "turned, through tanh, from a product": _summing(lambda c, y: (c + y, tanh((c + y).T)), lambda x, w: x[0] @ w),
    "from a product, in part hidden": _summing(
        lambda c, y: (c + jnp.where(y > 0, y, 0), c + jnp.where(y > 0, y, 0)), lambda x, w: x[0] @ w
    ),
    "of a masked kernel": lambda x, w: _summing(lambda c, y: (c + y, None))(x, jnp.where(_SOME, w, 0)),
    "the step before, that starts from turned": _summing(lambda c, y: (y, c), lambda x, w: x[0] @ w[:, ::-1]),
    "beside a state that is read": _summing(lambda c, y: (tanh(c), c + y), lambda x, w: _wide(x)[0]),
    "added up again": _summing(
        lambda c, y: ((c[0] + y, c[1] + (c[0] + y)), c[0] + y), lambda x, w: (_SUM, jnp.zeros_like(_SUM))
    ),
}
_GIVEN_TURNED = {
    "before the step": _summing(lambda c, y: (c + y, c), lambda x, w: x[0] @ w[:, ::-1]),
    "only they, before the step": lambda x, w: _summing(lambda c, y: (c + y, c), lambda x, w: x[0] @ w[:, ::-1])(x, w)[
        1
    ],
    "as they are carried on": _summing(lambda c, y: (c + y, c + y), lambda x, w: x[0] @ w[:, ::-1]),
    "turned beside": _summing(lambda c, y: (c + y, (c + y)[:, ::-1] + y)),
    "through tanh": _summing(lambda c, y: (c + y, tanh(c + y)), lambda x, w: x[0] @ w[:, ::-1]),
    "beside a state that is read, and the other way round": lambda x, w: (
        _summing(lambda c, y: (tanh(c), c + y), lambda x, w: _wide(x)[0])(x, w),
        _wide(x) @ w.T,
    ),
    "from a product that is seen, and the other way round": lambda x, w: (
        _summing(lambda c, y: (tanh(c), c), lambda x, w: x[0] @ w)(x, w),
        _wide(x) @ w.T,
    ),
    "through an fft at each step": _summing(lambda c, y: (jnp.fft.fft(c).real + y, None)),
    "turned at each step": _summing(lambda c, y: (c[:, ::-1] + y, None)),
    "in part, as often": lambda x, w: lax.scan(
        lambda c, x: (first := x[:, :2] @ w[:2], last := x[:, 2:] @ w[2:]) and (c + first + last, c + first + first),
        _SUM,
        x,
    ),
    "through tanh, of another product": lambda x, w: lax.scan(
        lambda c, x: (c + x @ w, tanh(c + x @ w[:, ::-1])), _SUM, x
    ),
}
_OF_A_STEP = {
    "the step before": lambda x, w: _carried(lambda c, y: (y, c))(x, w)[1],
    "the last step": lambda x, w: lax.fori_loop(0, 4, lambda i, c: x[i] @ w[i], _SUM),
}
_ONE_STEP = {
    "one step": lambda x, w: lax.fori_loop(0, 4, lambda i, c: jnp.where(i == 2, x[i] @ w[i], c), _SUM),
    "one step, by cond": lambda x, w: lax.fori_loop(
        0, 4, lambda i, c: lax.cond(i == 2, lambda c: x[i] @ w[i], lambda c: c, c), _SUM
    ),
    "one step, by data": lambda x, w: lax.fori_loop(0, 4, lambda i, c: jnp.where(x[i, 0, 0] > 0, x[i] @ w[i], c), _SUM),
}
_ADDED_IN_A_LOOP = {
    "in a loop within": lambda x, w: _carried(
        lambda c, y: (lax.fori_loop(0, 2, lambda k, d: d + (c + y) / 2, _SUM), None)
    )(x, w)[0],
    "in what a loop within gives": lambda x, w: _carried(
        lambda c, y: (lax.scan(lambda d, k: (d, c + y), 0.0, None, 2)[1][1], None)
    )(x, w)[0],
    "in what a loop within gives, summed": lambda x, w: _carried(
        lambda c, y: (lax.scan(lambda d, k: (d, c + y), 0.0, None, 2)[1].mean(0), None)
    )(x, w)[0],
    "beside its tanh, which nobody uses": lambda x, w: _carried(lambda c, y: ((tanh(y), c + y)[1], None))(x, w)[0],
    "beside what nobody uses": lambda x, w: _carried(lambda c, y: ((jnp.where(c > 0, y, c), c + y)[1], None))(x, w)[0],
    "one of two products": lambda x, w: lax.fori_loop(
        0, 4, lambda i, c: jnp.where(i % 2 == 0, c + x[i] @ w[i], c + tanh(x[i]) @ w[i]), _SUM
    ),
    "one of two products, by data": lambda x, w: lax.fori_loop(
        0, 4, lambda i, c: jnp.where(x[i, 0, 0] > 0, c + x[i] @ w[i], c + tanh(x[i]) @ w[i]), _SUM
    ),
}
ADDED = spelled(
    "batch added up",
    {name: lambda x, w, f=f: f(products(x, w)) for name, f in _ADDED.items()},
    _ENSEMBLE,
    w=w("i4 i5 o6"),
)
_STACKED = {name: _ADDED[name] for name in ("joined on the last axis, a scan", "a jitted scan, a row of it")}
ADDED += spelled(
    "stack of products added up",
    {name: lambda x, w, f=f: f(jnp.stack([x[i] @ w[i] for i in range(4)])) for name, f in _STACKED.items()},
    _ENSEMBLE,
    w=w("i4 i5 o6"),
)
# Entries of a batch that go through something linear which is not followed, before they meet.
_MIXING: dict[str, Any] = {
    "fft": lambda y: jnp.fft.fft(y).real,
    "cumsum": lambda y: jnp.cumsum(y, 0),
    "convolution": lambda y: jax.vmap(lambda row: jnp.convolve(row, np.ones(3, np.float32), "same"))(y),
    "copies of which one is there": lambda y: jnp.ones(3) @ (np.eye(3, dtype=np.float32)[0][:, None] * y[0]),
}
_MEETING: dict[str, Any] = {
    "added to another": lambda y, f: f(y[0]) + y[1],
    "both, added": lambda y, f: f(y[0]) + f(y[1]),
    "added to all": lambda y, f: y.at[1].add(f(y[0])),
    "added in a loop": lambda y, f: lax.fori_loop(0, 3, lambda i, c: c + y[1], f(y[0]) + jnp.zeros((2, 6))),
    "added after a loop": lambda y, f: lax.fori_loop(0, 3, lambda i, c: f(c) + jnp.zeros((2, 6)), y[0]) + y[1],
    "carried through it, and added": lambda y, f: scan(lambda c, i: f(c) + y[1], y[0], jnp.arange(3)),
    "one by one, in a loop": lambda y, f: scan(lambda c, v: c + f(v), jnp.zeros((2, 6)), y),
    "in a call": lambda y, f: jax.jit(lambda a, b: a + b)(jax.checkpoint(f)(y[0]), y[1]),
    "one in some rows, the other in others": lambda y, f: f(jnp.where(np.arange(2)[:, None] < 1, y[0], y[1])),
    "in rows of both, added up": lambda y, f: jnp.where(np.arange(2)[:, None] < 1, f(y[0]), f(y[1])).sum(0),
    "added as a join is cut": lambda y, f: (z := jnp.stack([f(y[0]) + jnp.zeros((2, 6)), y[1]]))[0] + z[1],
}
ENTRIES = [
    each
    for name, f in _MIXING.items()
    for each in spelled(
        f"entries of a batch, through {name}",
        {how: lambda x, w, f=f, g=g: g(products(x, w), f) for how, g in _MEETING.items()},
        _ENSEMBLE,
        w=alone("4 5 6"),
    )
]
# One entry is read, and others are added up: neither says that the other is not.
_READ_IN_PART: dict[str, Any] = {
    "others added up": lambda y: (tanh(y[0]), tanh(y[1] + y[2])),
    "others added up before": lambda y: (tanh(y[1] + y[2]), tanh(y[0])),
    "others added up, linearly": lambda y: (tanh(y[0]), y[1:].sum(0)),
    "added to another": lambda y: (tanh(y[0]), tanh(y[0] + y[1])),
    "halves, of which one is added up": lambda y: (tanh(y[:2]), tanh(y[2:].sum(0))),
    "in a loop": lambda y: (tanh(y[0]), scan(lambda c, v: c + v, jnp.zeros((2, 6)), y[1:])),
}
ENTRIES += spelled(
    "a batch of which one entry is read",
    {name: lambda x, w, f=f: f(products(x, w)) for name, f in _READ_IN_PART.items()},
    _ENSEMBLE,
    w=alone("4 5 6"),
)
CLOSED = spelled(
    "batch closed",
    {name: lambda x, g, w, f=f: f(products(x, w), g) for name, f in _CLOSED.items()},
    [_ENSEMBLE, _GATES],
    w=w("b4 i5 o6"),
)

# Sizes of one.


def _overlapping(first: jax.Array, second: jax.Array) -> jax.Array:
    """Three columns and three more, of which one is added to one of the first."""
    return jnp.pad(first, ((0, 0), (0, 2))) + jnp.pad(second, ((0, 0), (2, 0)))


def _mixed_with_another(x: jax.Array, w: jax.Array) -> jax.Array:
    y, z = x @ w, tanh(x) @ w
    return tanh(_overlapping(y[:, :3], y[:, 3:]) + jnp.pad(z[:, 1:3], ((0, 0), (0, 3))))


_OVERLAPPING = {
    "of two products": lambda x, w: tanh(_overlapping(x @ w[:, :3], x @ w[:, 3:])),
    "of one product, and of another": _mixed_with_another,
}


def _small(n: int, b: int, i: int, o: int) -> list[Case]:
    """Stacks of `n` kernels `(i, o)` for batches of `b`."""
    name = f"{n} kernels ({i}, {o}) for {b}"
    body = lambda y, at: y + tanh(at[0] @ at[1])  # noqa: E731
    out, xs = jnp.zeros((b, o)), x_(n, b, i)
    loops = {
        "scan": lambda x, w: scan(body, out, (x, w)),
        "unrolled": lambda x, w: functools.reduce(lambda y, k: body(y, (x[k], w[k])), range(n), out),
        "fori_loop": lambda x, w: lax.fori_loop(0, n, lambda k, y: body(y, (x[k], w[k])), out),
        "vmap": lambda x, w: tanh(products(x, w)).sum(0),
        "einsum": lambda x, w: tanh(jnp.einsum("nbi,nio->nbo", x, w)).sum(0),
    }
    sums = {
        "scan": lambda x, w: scan(_adding, out, (x, w)),
        "einsum": lambda x, w: jnp.einsum("nbi,nio->bo", x, w),
        "list": lambda x, w: sum(x[k] @ w[k] for k in range(n)),
    }
    return [
        *spelled(f"read, {name}", loops, xs, w=w(f"b{n} i{i} o{o}")),
        *spelled(f"added up, {name}", sums, xs, w=w(f"i{n} i{i} o{o}")),
    ]


SIZES = [
    of
    for sizes in [(2, 2, 8, 2), (2, 2, 8, 1), (1, 2, 8, 6), (2, 1, 8, 6), (1, 1, 8, 1), (2, 2, 1, 6), (1, 2, 1, 6)]
    for of in _small(*sizes)
]


def _attention(x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, o: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, kernel) for kernel in (q, k, v))
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), o)


SIZES += [
    case(
        f"attention of {b}, {t}, {h}, {k}",
        _attention,
        x_(b, t, 6),
        **{name: w(f"i6 o{h} o{k}") for name in "qkv"},
        o=w(f"i{h} i{k} o6"),
    )
    for b, t, h, k in [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 5), (2, 3, 4, 1), (1, 1, 1, 5)]
]

# The gradient inside of `fn`.


def _mlp_loss(params: Any, x: jax.Array) -> jax.Array:
    return ((tanh(x @ params["up"]) @ params["down"]) ** 2).mean()


def _mesh_loss(params: Any, x: jax.Array) -> jax.Array:
    block = _mesh(lambda x, up, down: lax.psum(tanh(x @ up) @ down, "model"), _COLUMNS, _ROWS)
    return (block(x, params["up"], params["down"]) ** 2).mean()


def _mesh_over_gradient(params: Any, x: jax.Array) -> Any:
    def run(params: Any, x: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(_mlp_loss)(params, x)
        return lax.pmean(loss, "model"), jax.tree.map(lambda g: lax.pmean(g, "model"), grads)

    return sharded(run, (P(), P("model")), (P(), P()), check_vma=False)(params, x)


def _experts_loss(params: Any, x: jax.Array) -> jax.Array:
    def run(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return lax.all_to_all(jax.vmap(jnp.matmul)(tanh(jax.vmap(jnp.matmul)(x, up)), down), "model", 0, 0, tiled=True)

    blocks = sharded(run, (P("model"), P("model"), P("model")), P("model"), check_vma=False)
    return (blocks(x, params["up"], params["down"]) ** 2).mean()


_UP_DOWN = {"up": w("i6 o8"), "down": w("i8 o4")}
_GRADIENTS = {
    "value": _mlp_loss,
    "value_and_grad": jax.value_and_grad(_mlp_loss),
    "grad": jax.grad(_mlp_loss),
    "grad of remat": jax.grad(jax.checkpoint(_mlp_loss)),
    "jitted grad": jax.jit(jax.grad(_mlp_loss)),
    "vjp": lambda params, x: jax.vjp(_mlp_loss, params, x)[1](1.0),
    "a step": lambda params, x: jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(_mlp_loss)(params, x)),
    "grad per example": lambda params, x: jax.vmap(jax.grad(_mlp_loss), (None, 0))(params, x[:, None]),
    "accumulated": lambda params, x: lax.scan(
        lambda total, x: (jax.tree.map(jnp.add, total, jax.grad(_mlp_loss)(params, x[None])), None),
        jax.tree.map(jnp.zeros_like, params),
        x,
    )[0],
    "mesh": _mesh_loss,
    "value_and_grad of a mesh": jax.value_and_grad(_mesh_loss),
    "mesh over value_and_grad": _mesh_over_gradient,
}


def _two_halves(x: jax.Array, w: jax.Array) -> jax.Array:
    """One half of a kernel is used before a loop, the other in it."""
    gate = tanh(x @ w[:, :5])
    return scan(lambda h, _: gate * tanh(h @ w[:, 5:]), x, None, length=3)


def _added_halves(x: jax.Array, w: jax.Array) -> jax.Array:
    """A unit that adds up two columns."""
    first = x @ w[:, :5]
    return scan(lambda h, _: tanh(h @ w[:, 5:] + first), jnp.zeros((2, 5)), None, length=3)


def _two_halves_of_rows(x: jax.Array, w: jax.Array) -> jax.Array:
    first = x @ w[:5]
    return scan(lambda h, _: tanh(h @ w[5:] + first), jnp.zeros((2, 6)), None, length=3)


def _two_halves_of_layers(x: jax.Array, w: jax.Array) -> jax.Array:
    return scan(dense, dense(x, w[0]), w[1:])


def _loss_of(f: Any) -> dict[str, Any]:
    loss = lambda w, x: (f(x, w) ** 2).mean()  # noqa: E731
    return {
        "value": f,
        "value_and_grad": lambda x, w: jax.value_and_grad(loss)(w, x),
        "grad of remat": lambda x, w: jax.grad(jax.checkpoint(loss))(w, x),
        "grad of a scan of remat": lambda x, w: jax.grad(lambda w: loss(w, jax.checkpoint(tanh)(x)))(w),
    }


GRADIENTS = [
    *spelled("gradient", {n: lambda x, f=f, **p: f(p, x) for n, f in _GRADIENTS.items()}, x_(2, 6), **_UP_DOWN),
    *spelled(
        "gradient of experts",
        {
            "value": lambda x, **p: _experts_loss(p, x),
            "value_and_grad": lambda x, **p: jax.value_and_grad(_experts_loss)(p, x),
        },
        x_(4, 2, 5),
        up=w("b4 i5 o7"),
        down=w("b4 i7 o6"),
    ),
    *spelled("halves of columns, before a loop and in it", _loss_of(_two_halves), _X, w=w("i5 o10")),
    *spelled("halves of rows, before a loop and in it", _loss_of(_two_halves_of_rows), _X, w=w("i11 o6")),
    *spelled("halves of layers, before a loop and in it", _loss_of(_two_halves_of_layers), _X, w=w("b4 i5 o5")),
]


@jax.custom_batching.custom_vmap
def _with_a_batching_rule(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


@_with_a_batching_rule.def_vmap
def _batched(size: int, batched: Any, x: jax.Array, w: jax.Array) -> tuple[jax.Array, bool]:
    return x @ w, True


@jax.custom_batching.custom_vmap
def _stopped_with_a_batching_rule(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.stop_gradient(x @ (w @ w.T))[:, :1]


@_stopped_with_a_batching_rule.def_vmap
def _stopped_batched(size: int, batched: Any, x: jax.Array, w: jax.Array) -> tuple[jax.Array, bool]:
    return lax.stop_gradient(x @ (w @ w.T))[..., :1], True


_CALLED: dict[str, Any] = {
    "with a batching rule": _with_a_batching_rule,
    "with a batching rule, vmapped": lambda x, w: jax.vmap(_with_a_batching_rule, (0, None))(x, w),
    "composite": lambda x, w: lax.composite(jnp.matmul, "corpus.product")(x, w),
    "stopped in one with a batching rule": lambda x, w: x @ w + _stopped_with_a_batching_rule(x, w),
}

# The data choose which layer an example goes through, or the whole batch.


_CHOSEN_LAYER: dict[str, Any] = {
    "where, each example": lambda x, on, w: jnp.where((on > 0)[:, None], x @ w[0], x @ w[1]),
    "by factors": lambda x, on, w: (
        (on > 0)[:, None] * (x @ w[0]) + (1 - (on > 0).astype(x.dtype))[:, None] * (x @ w[1])
    ),
    "by factors, not": lambda x, on, w: (on > 0)[:, None] * (x @ w[0]) + ~(on > 0)[:, None] * (x @ w[1]),
    "cond": lambda x, on, w: lax.cond(on[0] > 0, lambda: x @ w[0], lambda: x @ w[1]),
    "switch, each example": lambda x, on, w: jax.vmap(
        lambda x, on: lax.switch(on, [lambda: x @ w[0], lambda: x @ w[1]])
    )(x, on),
    "an index": lambda x, on, w: x @ w[on[0]],
    "an index, each example": lambda x, on, w: jnp.einsum("bi,bio->bo", x, w[on]),
    "an index of the products": lambda x, on, w: (x @ w)[on[0]],
    "cond of masked data": lambda x, on, w: lax.cond(
        on[0] > 0, lambda x: x @ w[0], lambda x: x @ w[1], jnp.where((on > 0)[:, None], x, 0.0)
    ),
    "by gates": lambda x, on, w: (on > 0)[:, None] * (x @ w[0]) + (on > 1)[:, None] * (x @ w[1]),
}
_UNSURE_LAYER: dict[str, Any] = {
    "where, the weights": lambda x, on, w: x @ jnp.where(on[0] > 0, w[0], w[1]),
    "where, or nothing": lambda x, on, w: (
        jnp.where((on > 0)[:, None], x @ w[0], 0.0) + jnp.where((on > 0)[:, None], 0.0, x @ w[1])
    ),
    "in a loop": lambda x, on, w: lax.scan(
        lambda y, at: (jnp.where(on[0] == at[0], x @ at[1], y), None), jnp.zeros((2, 6)), (jnp.arange(2), w)
    )[0],
}
# Each layer is chosen by itself, so that an output may be the sum of both.
_CHOSEN_APART: dict[str, Any] = {
    "where": lambda x, on, w: jnp.where((on > 0)[:, None], x @ w[0], 0.0) + jnp.where((on > 1)[:, None], x @ w[1], 0.0),
    "where, both ways": lambda x, on, w: (
        jnp.where((on > 0)[:, None], x @ w[0], 0.0) + jnp.where((on > 1)[:, None], 0.0, x @ w[1])
    ),
    "cond": lambda x, on, w: (
        lax.cond(on[0] > 0, lambda: x @ w[0], lambda: jnp.zeros((2, 6)))
        + lax.cond(on[1] > 0, lambda: x @ w[1], lambda: jnp.zeros((2, 6)))
    ),
    "masked data": lambda x, on, w: (
        jnp.where((on > 0)[:, None], x, 0.0) @ w[0] + jnp.where((on > 1)[:, None], x, 0.0) @ w[1]
    ),
}

# Products at places of their own, in one buffer.
_EYE = np.eye(4, dtype=np.float32)


def _at(y: jax.Array, t: Any) -> jax.Array:
    return lax.dynamic_update_slice(jnp.zeros((4, 2, 6)), y[None], (t, 0, 0))


def _filled(x: jax.Array, w: jax.Array) -> jax.Array:
    def put(t: Any, y: jax.Array) -> jax.Array:
        return y + jnp.where((jnp.arange(4) == t)[:, None, None], x[t] @ w[t], 0.0)

    return lax.fori_loop(0, 4, put, jnp.zeros((4, 2, 6)))


_PLACED = {
    "by one-hots that are broadcast": lambda x, w: sum(_EYE[t][:, None, None] * (x[t] @ w[t]) for t in range(4)),
    "by one-hots, as a tensor": lambda x, w: sum(jnp.tensordot(_EYE[t], x[t] @ w[t], 0) for t in range(4)),
    "by columns of one": lambda x, w: sum(
        jnp.einsum("sk,kbo->sbo", _EYE[:, t : t + 1], (x[t] @ w[t])[None]) for t in range(4)
    ),
    "by one-hots of an einsum": lambda x, w: sum(jnp.einsum("s,bo->sbo", _EYE[t], x[t] @ w[t]) for t in range(4)),
    "by one-hots in a loop": lambda x, w: lax.scan(
        lambda y, at: (y + at[2][:, None, None] * (at[0] @ at[1]), None), jnp.zeros((4, 2, 6)), (x, w, jnp.eye(4))
    )[0],
    "beside each other": lambda x, w: sum((x[t] @ w[t])[:, None, :] * _EYE[t][:, None] for t in range(4)).reshape(
        2, 24
    ),
    "in a loop": _filled,
    "in a loop, one of them": lambda x, w: _filled(x, w)[1],
    "weights, block-diagonal": lambda x, w: jnp.einsum("sbi,stio->tbo", x, _EYE[:, :, None, None] * w[:, None]),
}
_PLACED_AND_ADDED = {
    "summed": lambda y: y.sum(0),
    "in an einsum": lambda y: jnp.einsum("tbo->bo", y),
    "by a vector": lambda y: jnp.tensordot(np.arange(1.0, 5), y, 1),
    "halves": lambda y: y[:2] + y[2:],
    "turned round": lambda y: y + y[::-1],
    "rolled": lambda y: y + jnp.roll(y, 1, 0),
    "in a loop": lambda y: lax.fori_loop(0, 4, lambda t, c: c + y[t], jnp.zeros((2, 6))),
}
_PLACED_BY_DATA = {
    "two": lambda x, on, w: _at(x @ w[0], on[0]) + _at(x @ w[1], on[0] + 1),
    "one, and another all over": lambda x, on, w: _at(x @ w[0], on[0]) + x @ w[1],
    "read back elsewhere": lambda x, on, w: (
        lax.dynamic_index_in_dim(_at(x @ w[0], on[0]), on[0] - 1, 0, False) + x @ w[1]
    ),
    "in a loop": lambda x, on, w: lax.fori_loop(0, 2, lambda k, y: y + _at(x @ w[k], k + on[0]), jnp.zeros((4, 2, 6))),
}
# What a loop leaves is the last product, or some sum that it also gives: it may still be added to.
_LEFT = {
    "a sum that it gives": lambda x, w: lax.scan(lambda c, y: (c + y @ w[0], c), _SUM, x)[0] + x[0] @ w[1],
    "the last": lambda x, w: lax.scan(lambda c, y: (y @ w[0], None), _SUM, x)[0] + x[0] @ w[1],
    "the last that the data want": lambda x, w: (
        lax.scan(lambda c, y: (jnp.where(y[:, :1] > 0, y @ w[0], c), None), _SUM, x)[0] + x[0] @ w[1]
    ),
    "a sum that another one sees": lambda x, w: (
        lax.scan(lambda c, y: ((c[0] + y @ w[0], c[0] + c[1]), None), (_SUM, jnp.zeros_like(_SUM)), x)[0][0]
        + x[0] @ w[1]
    ),
    "the last, read with a sum that starts from it": lambda x, w: _summing(
        lambda c, y: (c + y, tanh(c + y)),
        lambda x, v: lax.scan(lambda c, y: (y @ w[0], None), _SUM, x)[0],
    )(x, w[1])[1],
    "the last that it gives": lambda x, w: (
        lax.scan(lambda c, y: (c + y @ w[0], c + y @ w[0]), _SUM, x)[1][-1] + x[0] @ w[1]
    ),
    "the last that it gives as it carries it": lambda x, w: (
        _summing(lambda c, y: (c + y, c + y))(x, w[0])[1][-1] + x[0] @ w[1]
    ),
    "what it gives before the first": lambda x, w: (
        _summing(lambda c, y: (c + y, c), lambda x, v: x[1] @ w[1])(x, w[0])[1][0] + x[0] @ w[0]
    ),
    "the last, and the first": lambda x, w: (lambda last, given: last + given[0])(
        *_carried(lambda c, y: (y + y, y))(x[:2], w)
    ),
    "what a loop leaves that starts from it": lambda x, w: (
        lax.fori_loop(0, 2, lambda k, c: x[k] @ w[1], c := lax.fori_loop(0, 2, lambda k, c: x[k] @ w[0], _SUM)) + c
    ),
    "the last, in a loop": lambda x, w: lax.scan(
        lambda c, w: (c + lax.scan(lambda h, y: (y @ w, None), jnp.zeros((2, 6)), x)[0], None), _SUM, w
    )[0],
}
_STOPPED = {
    "cond, vmapped": lambda x, y, w: jax.vmap(lambda x: lax.cond(x[0] > 0, lambda: x @ w, lambda: 2 * (x @ w)))(x),
    "where": lambda x, y, w: x @ jnp.where(y[0, 0] > 0, lax.stop_gradient(w), w),
    "where, the other way": lambda x, y, w: x @ jnp.where(y[0, 0] > 0, w, lax.stop_gradient(w)),
    "cond": lambda x, y, w: x @ lax.cond(y[0, 0] > 0, lambda: lax.stop_gradient(w), lambda: w),
    "where, products": lambda x, y, w: (lambda p: jnp.where(y > 0, lax.stop_gradient(p), p))(x @ w),
    "where, products, the other way": lambda x, y, w: (lambda p: jnp.where(y > 0, p, lax.stop_gradient(p)))(x @ w),
    "joined": lambda x, y, w: x @ jnp.concatenate([lax.stop_gradient(w[:2]), w[2:]]),
    "joined, the other way": lambda x, y, w: x @ jnp.concatenate([w[:2], lax.stop_gradient(w[2:])]),
    "carried": lambda x, y, w: lax.scan(lambda v, x: (w, x @ v), lax.stop_gradient(w), x[None])[1],
}


CASES = [
    *spelled("products placed", _PLACED, _ENSEMBLE, check_batch=False, w=w("b4 i5 o6")),
    *spelled(
        "stopped in part, and the other way round",
        {name: lambda x, y, w, f=f: (f(x, y, w), y @ w.T) for name, f in _STOPPED.items()},
        (_X, x_(2, 6)),
        w=alone("5 6"),
    ),
    case(
        "a loop of which the first step alone sees what it starts from",
        lambda x, w: lax.scan(
            lambda h, y: (y @ np.eye(5, 6, dtype=np.float32), tanh(h + y @ w[1])), x[0] @ w[0] + x[1] @ w[1], x
        )[1],
        _ENSEMBLE,
        w=alone("2 5 6"),
    ),
    *spelled("products placed by data, added", _PLACED_BY_DATA, (_X, tokens(2)), w=alone("2 5 6")),
    *spelled("layers", _through(dense), _X, w=w("b4 i5 o5")),
    *spelled("called", _CALLED, _X, w=w("i5 o6")),
    *spelled("residual layers", _RESIDUALS, x_(2, 6), w=_BLOCKS),
    *spelled("a layer that the data choose", _CHOSEN_LAYER, (_X, tokens(2)), check_batch=False, w=w("b2 i5 o6")),
    *spelled("sum over parts", _SUMS, _PARTS, w=w("i4 i5 o6")),
    *spelled("inputs in chunks", _CHUNKED_IN, x_(2, 20), w=w("i20 o6")),
    *spelled("outputs in chunks", _CHUNKED_OUT, x_(2, 6), check_batch=False, w=w("i6 o20")),
    *(of for f in spelled("mesh", _MESHES, x_(2, 6), **_UP_DOWN) for of in (f, with_gradient(f))),
    *map(with_gradient, spelled("residual layers", _DIFFERENTIATED, x_(2, 6), w=_BLOCKS)),
    *spelled("experts", _EXPERTS, _ENSEMBLE, w=w("b4 i5 o6", "o4 i5 o6")),
    *STACKS,
    *CLOSED,
    *ENTRIES,
    *(
        case(f"a product, and {name} of it, added", lambda x, w, f=f: (y := x @ w) + f(y), _X, w=w("i5 o6"))
        for name, f in _MIXING.items()
    ),
    case(
        "entries of a batch, written into rows in turn, and added up",
        lambda x, w: jnp.cumsum(
            jnp.zeros((4, 6)).at[np.array([0, 2])].set((y := products(x, w))[0]).at[np.array([1, 3])].set(y[1]),
            0,
        ),
        _ENSEMBLE,
        w=alone("4 5 6"),
    ),
    case(
        "one entry of a batch or another, which an fft adds up",
        lambda x, w: (y := products(x, w)) is not None and jnp.fft.fft(jnp.where(x[0, 0, 0] > 0, y[0], y[1])).real,
        _ENSEMBLE,
        w=w("b4 i5 o6"),
    ),
    case(
        "a batch of which each entry is read in its way",
        lambda x, w: (y := products(x, w)) is not None and (tanh(y[0]), jax.nn.relu(y[1]), y[2], tanh(y[3]).sum()),
        _ENSEMBLE,
        w=w("b4 i5 o6"),
    ),
    *(
        case(
            f"entries of a batch side by side, through {name}",
            lambda x, w, f=f: jnp.stack([f(y) + jnp.zeros((2, 6)) for y in products(x, w)]),
            _ENSEMBLE,
            w=w("b4 i5 o6"),
        )
        for name, f in _MIXING.items()
    ),
    *spelled("products of a loop", _OF_A_STEP, _ENSEMBLE, w=w("b4 i5 o6")),
    *spelled("sums that a loop gives", _GIVEN, _ENSEMBLE, w=w("i5 o6")),
    case(
        "sums that a loop gives: through tanh, from another product",
        lambda x, w, u: _summing(lambda c, y: (c + y, tanh(c + y)), lambda x, _: x[0] @ u)(x, w),
        _ENSEMBLE,
        w=w("i5 o6"),
        u=w("i5 o6"),
    ),
    case(
        "layers of two products, the first layer's first before the loop",
        lambda x, w, v: lax.scan(
            lambda h, at: ((g := h + tanh(h) @ at[0]) + tanh(g) @ at[1], None), x @ w[0], (w[1:], v)
        )[0],
        _X,
        w=w("b4 i5 o5"),
        v=w("b3 i5 o5"),
    ),
    *spelled(
        "outputs added up",
        {
            "scan": lambda x, w: tanh(lax.scan(lambda c, y: (c + y, None), jnp.zeros(2), (x @ w).T)[0]),
            "fori_loop": lambda x, w: (lambda y: tanh(lax.fori_loop(0, 6, lambda k, c: c + y[:, k], jnp.zeros(2))))(
                x @ w
            ),
        },
        _X,
        w=w("i5 o6"),
    ),
    case(
        "layers that the data choose, added up in a loop",
        lambda x, on, w: lax.scan(lambda c, at: (c + at[0] @ w[at[1]], None), _SUM, (x, on))[0],
        (_ENSEMBLE, tokens(4)),
        w=alone("3 5 6"),
    ),
    *spelled("sums that a loop gives, and starts from turned", _GIVEN_TURNED, _ENSEMBLE, w=alone("5 6")),
    *SIZES,
    *GRADIENTS,
]
HARD = [
    *spelled(
        "products placed, and added",
        {name: lambda x, w, f=f: f(_filled(x, w)) for name, f in _PLACED_AND_ADDED.items()},
        _ENSEMBLE,
        w=w("i4 i5 o6", "4 5 6"),
    ),
    *spelled("added to what a loop leaves", _LEFT, _ENSEMBLE, w=w("i2 i5 o6")),
    *spelled("a layer that the data choose", _UNSURE_LAYER, (_X, tokens(2)), w=w("b2 i5 o6")),
    *spelled("chosen apart", _CHOSEN_APART, (_X, tokens(2)), w=w("i2 i5 o6")),
    *ADDED,
    *spelled("sums of a loop in part", _IN_PART, _ENSEMBLE, w=alone("4 5 6")),
    *spelled("products of a loop", _ONE_STEP, _ENSEMBLE, w=w("b4 i5 o6")),
    *spelled("sums of a loop", _ADDED_IN_A_LOOP, _ENSEMBLE, w=w("i4 i5 o6")),
    *spelled(
        "batch added up",
        {"with its outputs": lambda x, w: products(x, w).sum()},
        _ENSEMBLE,
        w=w("i4 i5 o6", "b4 i5 o6"),
    ),
    *spelled("columns that overlap", _OVERLAPPING, x_(2, 4), w=alone("4 6")),
    case("mesh: blocks of a weight added up", _blocks_added_up, x_(2, 4), w=alone("8 6")),
    *spelled("experts", {"block-diagonal": _block_diagonal}, _ENSEMBLE, w=w("b4 i5 o6")),
    *spelled("added halves of columns, before a loop and in it", _loss_of(_added_halves), _X, w=w("i5 o10")),
]
