"Are the networks Torchreid's? Counts, names, shapes and features of all 49, by name"
import pytest
import torch

from parity import GOLDEN, check_parity
from reid_nb.models.zoo import create_model

@pytest.mark.parametrize('name', GOLDEN.index)
def test_torchreids_network(name):
    "Made of numbers only once: on `meta` first, and its layers are filled by the check"
    torch.manual_seed(0)
    with torch.device('meta'): meta = create_model(name, 1000)
    heads = {k for k, _ in meta.named_children() if k.startswith('classifier')}
    params = {k: o.numel() for k, o in meta.named_parameters()}
    assert sum(params.values()) == GOLDEN.params[name]
    assert sum(n for k, n in params.items() if k.split('.')[0] not in heads) == GOLDEN.body_params[name]
    assert meta.n_feats == GOLDEN.n_feats[name]
    check_parity(lambda n: create_model(name, n), name)
