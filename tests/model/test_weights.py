"""Finding the transformer, and telling weights that can be written from those that cannot."""

import pytest
import torch

from safeflux.errors import ModelError
from safeflux.families.sites import find_sites
from safeflux.model.weights import check_plain, check_writable, find_transformer, named_weights, uncompiled


def test_the_transformer_of_a_pipeline_is_found(pipe, transformer):
    assert find_transformer(pipe) is transformer
    assert find_transformer(transformer) is transformer


@pytest.mark.parametrize("model", [None, "black-forest-labs/FLUX.1-dev", object()])
def test_what_holds_no_transformer_is_refused(model):
    with pytest.raises(ModelError, match=f"expected a FLUX pipeline.*got {type(model).__name__}"):
        find_transformer(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch, when its compiler is first imported
def test_a_compiled_model_is_refused_with_the_order_that_works(transformer):
    compiled = torch.compile(transformer, backend="eager")
    assert uncompiled(compiled) is transformer
    with pytest.raises(ModelError, match=r"load, guard, then torch.compile"):
        find_transformer(compiled)


def test_tied_weights_are_named_twice(transformer):
    blocks = transformer.transformer_blocks
    blocks[1].ff.net[2].weight = blocks[0].ff.net[2].weight
    weights = named_weights(transformer)
    assert weights["transformer_blocks.1.ff.net.2.weight"] is weights["transformer_blocks.0.ff.net.2.weight"]


def test_a_loaded_model_is_writable_and_an_offloaded_one_is_not(transformer):
    sites = find_sites(transformer).values()
    check_writable(transformer, sites)
    with pytest.raises(ModelError, match=r"tensor 'transformer_blocks.0.ff.net.0.proj.weight' holds no values"):
        check_writable(transformer.to("meta"), sites)


@pytest.mark.parametrize("shape", [(1,), (1, 4), (3, 1), (2, 3)])
def test_plain_tensors_of_any_shape_pass(shape):
    check_plain("x", torch.nn.Parameter(torch.randn(shape)))
    check_plain("x", torch.randn(shape).t() if len(shape) == 2 else torch.randn(shape))
