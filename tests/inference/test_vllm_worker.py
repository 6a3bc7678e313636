import torch

from cpo_ray.inference.vllm_worker import repack_tied_layers


class Packing:
    """Packs weights as vLLM does on CPU: the layer multiplies with a copy made when the weights were loaded."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.packed = layer.weight.detach().clone()


def prepared(layer: torch.nn.Module) -> torch.nn.Module:
    layer.quant_method = Packing()
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def test_only_a_tied_head_is_repacked() -> None:
    embedding, body, head = torch.nn.Embedding(7, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 7, bias=False)
    head.weight = embedding.weight
    model = torch.nn.ModuleList([prepared(embedding), prepared(body), prepared(head), torch.nn.LayerNorm(3)])
    with torch.no_grad():
        embedding.weight.fill_(5)
        body.weight.fill_(5)
    assert repack_tied_layers(model) == 2
    assert torch.equal(head.packed, torch.full((7, 3), 5.0))
    assert not torch.equal(body.packed, body.weight)


def test_empty_weights_do_not_count_as_tied() -> None:
    nothing = torch.nn.Parameter(torch.empty(0))
    layers = [prepared(torch.nn.Linear(2, 2)) for _ in range(2)]
    for layer in layers:
        layer.weight = nothing
    assert repack_tied_layers(torch.nn.ModuleList(layers)) == 0
