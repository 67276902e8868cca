"""What `print(plan)` and a notebook show."""

import re

import jax
import jax.numpy as jnp
import pytest

from optax_gc import ParamAxes, WeightAxes, infer_axes, layout_axes


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture(scope="module")
def plan():
    def fn(params, x):
        for i in range(12):
            layer = params[f"a_block_with_a_long_name_{i}"]["attention_of_this_block"]
            x = x + jnp.einsum("bd,dhk->bhk", x, layer["query"]).sum((1, 2))[:, None] + layer["bias"]
        return x @ params["head"]

    layer = {"query": spec(5, 2, 3), "bias": spec(5)}
    layers = {f"a_block_with_a_long_name_{i}": {"attention_of_this_block": layer} for i in range(12)}
    return infer_axes(fn, {**layers, "head": spec(5, 7)}, spec(4, 5))


@pytest.fixture(params=[80, 140])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_the_table_is_no_wider_than_the_terminal(plan, width):
    assert max(map(len, str(plan).splitlines())) <= width


def test_layers_that_differ_in_their_number_share_a_row(plan, width):
    text = str(plan)
    assert "a_block_with_a_long_name_{0..11}/attention_of_this_block" in text
    assert re.search(r"query \(12x\) +5x2x3 +0 +1,2 +dot_general at", text)
    assert len(text.splitlines()) < 20


def test_a_weight_shows_its_shape_its_roles_and_why():
    found = ParamAxes(
        {"moe/kernel": WeightAxes((1,), (2,), (0,))},
        shapes={"moe/kernel": (4, 5, 6)},
        why={"moe/kernel": "dot_general at moe.py:7"},
    )
    assert re.search(r"^moe$", str(found), re.MULTILINE)
    assert re.search(r"kernel +4x5x6 +1 +2 +0 +dot_general at moe.py:7", str(found))


def test_layers_of_another_shape_or_another_use_keep_a_row_of_their_own():
    params = {"layer_0": {"w": spec(3, 4)}, "layer_1": {"w": spec(4, 4)}, "layer_2": {"w": spec(4, 4)}}

    def fn(params, x):
        return x @ params["layer_0"]["w"] @ params["layer_1"]["w"] @ params["layer_2"]["w"].T

    text = str(infer_axes(fn, params, spec(2, 3)))
    for name in params:
        assert re.search(rf"^{name}$", text, re.MULTILINE)


def test_the_summary_counts_weights_and_what_is_left_alone_by_reason(plan):
    lines = [line.strip() for line in str(plan).splitlines()]
    assert "weights: 13 (395 elements)" in lines
    assert "left alone: 12 (60 elements)" in lines
    assert "added to the data: 12 (60 elements)" in lines


def test_a_notebook_shows_the_same_words_as_html(plan):
    html = plan._repr_html_()
    assert html.startswith("<pre")
    words = re.sub(r"<[^>]+>", "", html)
    assert "attention_of_this_block" in words
    assert "dot_general at test_table.py" in words


def test_names_are_escaped_in_html():
    html = layout_axes({"<script>": {"w": jnp.ones((2, 3))}})._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_brackets_in_names_are_shown_as_they_are():
    assert "[bold]" in str(layout_axes({"[bold]": {"w": jnp.ones((2, 3))}}))


def test_repr_is_one_line(plan):
    assert repr(plan) == "<ParamAxes: 13 weights, 12 leaves left alone; print() shows the table>"
