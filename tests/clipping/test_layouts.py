"""Gradients that are sparse, complex or sharded, and parameters without names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from clipbench.clipping import (
    AdaGC,
    AdaptiveGradientClip,
    Chain,
    Clipper,
    ConstantThreshold,
    EmaThreshold,
    MixClip,
    NoClip,
    NormClip,
    PerTensorNorm,
    RmsClip,
    SoftSpectralClip,
    SpectralClip,
    ValueClip,
)
from tests.clipping.gradients import fill, model, now


def embedding() -> nn.Module:
    """A sparse gradient with one row twice, not coalesced, beside a dense one."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "out": nn.Linear(3, 2)})
    module["out"](module["table"](torch.tensor([1, 4, 1]))).square().sum().backward()
    return module


def test_norm_and_value_clipping_of_sparse_gradients() -> None:
    for clip in (NormClip(0.1), ValueClip(0.01)):
        module = embedding()
        dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad.clone() for p in module.parameters()]
        twin = [nn.Parameter(torch.zeros_like(grad)) for grad in dense]
        for one, grad in zip(twin, dense, strict=True):
            one.grad = grad
        norm = clip(module.named_parameters()).norm
        assert float(norm) == pytest.approx(float(clip(twin).norm))  # type: ignore[arg-type]
        for found, expected in zip(module.parameters(), twin, strict=True):
            grad = found.grad.to_dense() if found.grad.is_sparse else found.grad
            assert torch.allclose(grad, expected.grad, rtol=1e-6)
        assert module["table"].weight.grad.is_sparse


def test_what_cannot_be_is_refused_in_one_line_with_the_name() -> None:
    module = embedding()
    refused = r"named_parameters must have dense gradients, got torch.sparse_coo for table.weight"
    with pytest.raises(ValueError, match=refused):
        SpectralClip(1.0)(module.named_parameters())
    module["table"].weight.grad = module["table"].weight.grad.coalesce()
    with pytest.raises(ValueError, match=refused):
        SpectralClip(1.0)(module.named_parameters())
    wave = nn.ParameterDict({"wave": nn.Parameter(torch.zeros(3, 2, dtype=torch.complex64))})
    wave["wave"].grad = torch.ones(3, 2, dtype=torch.complex64)
    for clip in (SpectralClip(1.0), SoftSpectralClip(1.0), ValueClip(1.0)):
        with pytest.raises(ValueError, match=r"must have real gradients, got torch.complex64 for wave"):
            clip(wave.named_parameters())


def test_norm_clipping_of_complex_gradients() -> None:
    weights = [nn.Parameter(torch.zeros(3, 2, dtype=torch.complex64)), nn.Parameter(torch.zeros(4))]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    expected = [weight.grad.clone() for weight in weights]
    norm = torch.sqrt(sum(grad.abs().square().sum() for grad in expected))
    stats = NormClip(0.5)(weights)
    assert float(stats.norm) == pytest.approx(float(norm))
    for weight, grad in zip(weights, expected, strict=True):
        assert torch.allclose(weight.grad, grad * (0.5 / norm))


def test_parameters_without_names_where_names_are_not_needed() -> None:
    for clip in (NormClip(1.0), NormClip(EmaThreshold(0.5)), ValueClip(1.0), NoClip()):
        for seed in range(2):
            module = model()
            fill(module, seed)
            clip(module.parameters())
        fresh = type(clip)() if isinstance(clip, NoClip) else type(clip)(clip.threshold)  # type: ignore[call-arg]
        fresh.load_state_dict(clip.state_dict())
    one = nn.Parameter(torch.zeros(3))
    one.grad = torch.full((3,), 2.0)
    assert float(NormClip(1.0)(one).norm) == pytest.approx(12**0.5)  # type: ignore[arg-type]
    for layerwise in (SpectralClip(1.0), SoftSpectralClip(ConstantThreshold(1.0))):
        with pytest.raises(ValueError, match="named_parameters must be named"):
            layerwise(module.parameters())


@pytest.mark.parametrize(
    "clip",
    [NormClip(0.5, skip=["head"]), AdaptiveGradientClip(0.01), AdaGC(), PerTensorNorm(0.5), SpectralClip(0.5),
     Chain([NormClip(0.5), SpectralClip(0.5)]), Chain([AdaptiveGradientClip(0.01)])],
    ids=lambda clip: type(clip).__name__,
)  # fmt: skip
@pytest.mark.parametrize("rows", [2, 3])
def test_parameters_without_names_where_names_are_needed(clip: Clipper, rows: int) -> None:
    """A weight of two rows must not pass for a pair of a name and a parameter, nor a place for a name."""
    module = nn.Linear(3, rows)
    fill(module, 0)
    with pytest.raises(ValueError, match=r"^named_parameters must be named"):
        clip(module.parameters())


@pytest.mark.parametrize("rows", [2, 3])
def test_rules_that_skip_nothing_need_no_names(rows: int) -> None:
    for clip in (AdaptiveGradientClip(0.01, skip=[]), Chain([ValueClip(0.1), NormClip(0.5)])):
        plain, named = nn.Linear(3, rows), nn.Linear(3, rows)
        named.load_state_dict(plain.state_dict())
        for module, given in ((plain, plain.parameters()), (named, named.named_parameters())):
            fill(module, 0)
            before = module.weight.grad.clone()  # type: ignore[union-attr]
            assert float(clip(given).clipped_fraction) > 0
            assert not torch.equal(module.weight.grad, before)  # type: ignore[arg-type]
        assert torch.equal(plain.weight.grad, named.weight.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("rule", [MixClip, RmsClip])
def test_rules_that_watch_the_gradient_need_no_names(rule: Any, rows: int) -> None:
    """Two rows: a parameter of two entries can be taken apart as if it were a name and a parameter."""
    found = []
    for ways in (nn.Module.parameters, nn.Module.named_parameters):
        module, clip = nn.Linear(3, rows), rule(0.5)
        for step in range(2):
            fill(module, step)
            clip.observe(ways(module))
            fill(module, step + 2)
            clip(ways(module))
        found.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(plain, named) for plain, named in zip(*found, strict=True))


def clippers() -> dict[str, Clipper]:
    return {
        "norm": NormClip(0.5), "adaptive": NormClip(EmaThreshold(0.5)), "value": ValueClip(0.1),
        "spectral": SpectralClip(0.5, skip=[]), "soft": SoftSpectralClip(0.5, skip=[]), "none": NoClip(),
    }  # fmt: skip


def clipped_shards(mesh: Any) -> dict[str, Any]:
    """Gradients after every clipper, and the norm it tells, with gradients shared out in each way over `mesh`."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    found: dict[str, Any] = {}
    for kind, placements in {"rows": Shard(0), "columns": Shard(1), "copies": Replicate()}.items():
        for name, clip in clippers().items():
            module = model()
            fill(module, 1)
            whole = {key: grad.clone() for key, grad in now(module).items()}
            sharded = {}
            for key, grad in whole.items():
                place = placements if grad.ndim > 1 or kind != "columns" else Shard(0)
                sharded[key] = nn.Parameter(distribute_tensor(torch.zeros_like(grad), mesh, [place]))
                sharded[key].grad = distribute_tensor(grad, mesh, [place])
            stats = clip(sharded.items())
            grads = {key: parameter.grad.full_tensor() for key, parameter in sharded.items()}  # type: ignore[union-attr]
            found[f"{kind}/{name}"] = (grads, stats.norm)
    return found


def expect_as_whole(found: dict[str, Any]) -> None:
    for kind in ("rows", "columns", "copies"):
        for name, clip in clippers().items():
            module = model()
            fill(module, 1)
            stats = clip(module.named_parameters())
            grads, norm = found[f"{kind}/{name}"]
            for key, grad in now(module).items():
                assert torch.allclose(grads[key], grad, rtol=1e-5, atol=1e-6), (kind, name, key)
            assert norm is None if stats.norm is None else float(norm) == pytest.approx(float(stats.norm), rel=1e-6)


@pytest.fixture
def alone() -> Iterator[Any]:
    """A mesh of this process only: gradients are sharded ones, in one piece."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_gradients_in_one_piece(alone: Any) -> None:
    expect_as_whole(clipped_shards(alone))


def test_sharded_gradients_that_are_refused_by_name(alone: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    one = nn.Parameter(distribute_tensor(torch.zeros(4, 2), alone, [Shard(0)]))
    one.grad = distribute_tensor(torch.ones(4, 2), alone, [Shard(0)])
    with pytest.raises(ValueError, match=r"that are not sharded, got a DTensor for layer\.weight$"):
        AdaptiveGradientClip()([("layer.weight", one)])
    summands = nn.Parameter(DTensor.from_local(torch.zeros(4, 2), alone, [Partial()]))
    summands.grad = DTensor.from_local(torch.ones(4, 2), alone, [Partial()])
    with pytest.raises(ValueError, match=r"must have gradients that are summed, got .*Partial.* for layer\.weight$"):
        NormClip(1.0)([("layer.weight", summands)])


def sharded_steps(rank: int, folder: str) -> None:
    """One process: FSDP2 and DTensor gradients through every clipper, and torch's own norm clipping beside them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = clipped_shards(mesh)
    module = model()
    fully_shard(module)
    for oracle in (True, False):
        for key, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key)))
            parameter.grad = distribute_tensor(values, mesh, [Shard(0)])
        if oracle:
            norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5).full_tensor()  # type: ignore[attr-defined]
        else:
            norm = NormClip(0.5)(module.parameters()).norm
        grads = {key: parameter.grad.full_tensor() for key, parameter in module.named_parameters()}  # type: ignore[union-attr]
        found["torch" if oracle else "ours"] = (grads, norm)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_gradients_are_clipped_as_whole_ones(tmp_path: Path) -> None:
    mp.spawn(sharded_steps, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    expect_as_whole(found)
    assert float(found["ours"][1]) == pytest.approx(float(found["torch"][1]), rel=1e-6)
    for key, grad in found["torch"][0].items():
        assert torch.allclose(found["ours"][0][key], grad, rtol=1e-5)
