"""What `print(plan)` and a notebook show."""

import re

import flax.linen as nn
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


@pytest.mark.parametrize("columns", ["10", "40", "80"])
def test_no_number_and_no_path_is_cut_or_broken_in_a_narrow_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    module = "/".join(["a_module_with_a_long_name"] * 4)
    why = {f"{module}/kernel": "dot_general at a_file_with_a_long_name.py:7"}
    axes = {f"{module}/kernel": WeightAxes((1, 2), (3, 4), (0,))}
    plan = ParamAxes(axes, shapes={f"{module}/kernel": (128, 1024, 16, 2048, 64)}, why=why)
    for text in (str(plan), re.sub(r"<[^>]+>", "", plan._repr_html_())):
        assert re.search(rf"^{module}\s*$", text, re.MULTILINE)
        assert re.search(r"kernel +128x1024x16x2048x64 +1,2 +3,4 +0 +dot_general at", text)
        assert "…" not in text
        assert "weights: 1 (274,877,906,944 elements)" in text


def test_a_leaf_with_a_long_name_is_folded_and_the_rest_stays_in_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "layers.attention.multi_head.query_projection.weight"
    lines = str(layout_axes({name: jnp.ones((1024, 1024))}, -1)).splitlines()
    folded = [line.split() for line in lines[2:-2]]
    assert max(map(len, lines)) <= 80
    assert "".join(part[0] for part in folded) == name
    assert folded[0][1:4] == ["1024x1024", "0", "1"]


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


def layers(*shapes):
    return {f"layer_{i}": {"w": spec(*shape)} for i, shape in enumerate(shapes)}


def test_groups_of_layers_stand_in_natural_order():
    # A dict of JAX is sorted by letters: layer_1, layer_10, layer_11, layer_2.
    plan = layout_axes(layers(*[(2, 3)] * 3, *[(3, 4)] * 7, (4, 5), (5, 6), (6, 7)), -1)
    headings = [line.strip() for line in str(plan).splitlines() if line.startswith("layer_")]
    assert headings == ["layer_{0..2}", "layer_{3..9}", "layer_10", "layer_11", "layer_12"]


def test_what_has_no_number_stays_in_the_order_of_the_tree():
    names = ["stem/w", "blocks/1/w", "blocks/1/bias", "blocks/0/w", "head/w"]
    plan = ParamAxes(dict.fromkeys(names, WeightAxes(0, 1)), shapes={name: (i + 2, 5) for i, name in enumerate(names)})
    words = [line.split()[0] for line in str(plan).splitlines()[2:-2]]
    assert words == ["stem", "w", "blocks/0", "w", "blocks/1", "w", "bias", "head", "w"]


def test_batch_has_a_column_where_a_leaf_has_batch_axes():
    stacked = ParamAxes({"w": WeightAxes(1, 2, 0), "v": WeightAxes(0, 1)})
    assert str(stacked).splitlines()[0].split() == ["leaf", "shape", "in", "out", "batch", "why"]
    plain = ParamAxes({"v": WeightAxes(0, 1)})
    assert str(plain).splitlines()[0].split() == ["leaf", "shape", "in", "out", "why"]
    assert str(ParamAxes({})).splitlines()[0].split() == ["leaf", "shape", "in", "out", "why"]


class Bottleneck(nn.Module):
    width: int
    strides: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(False)(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(nn.BatchNorm(False)(nn.Conv(self.width, (3, 3), self.strides, use_bias=False)(y)))
        y = nn.BatchNorm(False)(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.BatchNorm(False)(nn.Conv(4 * self.width, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(False)(nn.Conv(64, (7, 7), 2, use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def test_a_resnet_50_does_not_wrap_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model, images = ResNet50(), spec(2, 64, 64, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def fn(params, stats, images):
        return model.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])[0]

    text = str(infer_axes(fn, variables["params"], variables["batch_stats"], images))
    table = text.split("─\n")[1].splitlines()
    rows = [line for line in table if line.startswith("  ")]
    assert len(rows) > 50
    assert all(re.search(r" at test_table.py:\d+$", row) for row in rows), text
    assert max(map(len, rows)) <= 80
    stages = re.findall(r"^Bottleneck_(\S+)/BatchNorm_0$", text, re.MULTILINE)
    assert stages == ["{0..2}", "{3..6}", "{7..12}", "{13..15}"]


def test_the_summary_counts_weights_and_what_is_left_alone_by_reason(plan):
    lines = [line.strip() for line in str(plan).splitlines()]
    assert "weights: 13 (395 elements)" in lines
    assert "left alone: 12 (60 elements)" in lines
    assert "added to the data: 12 (60 elements)" in lines


def test_a_notebook_shows_the_same_words_as_html(plan):
    html = plan._repr_html_()
    assert html.startswith("<pre")
    assert "color" not in html  # that of the page can be read on the page
    words = re.sub(r"<[^>]+>", "", html)
    assert "attention_of_this_block" in words
    assert "dot_general at test_table.py" in words


def test_names_are_escaped_in_html():
    html = layout_axes({"<script>": {"kernel": jnp.ones((2, 3))}})._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_brackets_in_names_are_shown_as_they_are():
    assert "[bold]" in str(layout_axes({"[bold]": {"kernel": jnp.ones((2, 3))}}))


def test_repr_is_one_line(plan):
    assert repr(plan) == "<ParamAxes: 13 weights, 12 leaves left alone; print() shows the table>"
    one = layout_axes({"w": spec(2, 3), "bias": spec(1)}, -1)
    assert repr(one) == "<ParamAxes: 1 weight, 1 leaf left alone; print() shows the table>"
    assert "left alone: 1 (1 element)" in str(one)
