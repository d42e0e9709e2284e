"""What clippers remember is in the frameworks' checkpoints, and parts of a batch are placed."""

from __future__ import annotations

from pathlib import Path

import accelerate
import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from clipbench import EmaThreshold, NormClip, PerSampleClipper, PowerThreshold, SampleEma
from clipbench.integrations.accelerate import AcceleratedClipper
from clipbench.integrations.accumulation import Window
from clipbench.integrations.huggingface import ClipCallback
from clipbench.integrations.lightning import KEY, ClippingMixin
from clipbench.integrations.state import ClipperState

pytestmark = pytest.mark.slow


class Module(ClippingMixin, lightning.LightningModule):
    def __init__(self, per_sample: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(4, 2)
        self.set_clipper(PerSampleClipper(self, SampleEma(0.5)) if per_sample else NormClip(EmaThreshold(0.5)))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        losses = self.model(batch[0]).square().sum(1)
        return losses if isinstance(self._clipper, PerSampleClipper) else losses.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, epochs: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip


@pytest.mark.parametrize("per_sample", [False, True])
def test_lightning_goes_on_from_its_checkpoint(tmp_path: Path, per_sample: bool) -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(1))), batch_size=4)
    whole = Module(per_sample)
    trainer(tmp_path, 2).fit(whole, loader)
    first = trainer(tmp_path, 1)
    first.fit(Module(per_sample), loader)
    first.save_checkpoint(tmp_path / "half.ckpt")
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)[KEY]
    again = Module(per_sample)
    trainer(tmp_path, 2).fit(again, loader, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(again.model.weight, whole.model.weight)


def test_accelerate_saves_what_a_clipper_remembers(tmp_path: Path) -> None:
    def made() -> tuple[accelerate.Accelerator, nn.Module, torch.optim.Optimizer, AcceleratedClipper]:
        accelerator = accelerate.Accelerator(cpu=True)
        model = nn.Linear(3, 1)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        return accelerator, model, optimizer, AcceleratedClipper(accelerator, NormClip(EmaThreshold(0.5)))

    accelerator, model, optimizer, clipper = made()
    accelerator.backward(model(torch.ones(2, 3)).sum())
    assert clipper.clip(model, optimizer) is not None
    accelerator.save_state(str(tmp_path))
    other, _, _, fresh = made()
    other.load_state(str(tmp_path))
    wanted = clipper.clipper.state_dict()["threshold"]
    found = fresh.clipper.state_dict()["threshold"]
    assert str(found) == str(wanted) != str(NormClip(EmaThreshold(0.5)).state_dict()["threshold"])
    with pytest.raises(ValueError, match=r"clipper must be a PerSampleClipper for backward\(losses\)"):
        clipper.backward(torch.ones(2))


class Args:
    def __init__(self, folder: Path) -> None:
        self.output_dir = str(folder)


class Step:
    global_step, is_world_process_zero = 3, True


def test_the_trainer_keeps_what_a_clipper_remembers(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    model = nn.Linear(3, 1)
    model(torch.ones(2, 3)).sum().backward()
    callback, fresh = ClipCallback(NormClip(EmaThreshold(0.5))), ClipCallback(NormClip(EmaThreshold(0.5)))
    callback.on_pre_optimizer_step(Args(tmp_path), Step, None, model=model)
    empty = str(fresh.state.state_dict())
    callback.on_save(Args(tmp_path), Step, None)
    fresh.on_train_begin(Args(tmp_path), Step, None)
    assert str(fresh.state.state_dict()) == str(callback.state.state_dict()) != empty


def test_what_is_no_clipper() -> None:
    with pytest.raises(ValueError, match=r"clipper must be a Clipper or a PerSampleClipper, got 3"):
        ClipperState(3)  # type: ignore[arg-type]


def test_parts_count_on_and_a_window_ends() -> None:
    model = nn.Linear(3, 1)
    clipper, window = PerSampleClipper(model, PowerThreshold(1.0, 1.0)), Window()
    sizes = [(4, 2), (4, 2), (4, 2), (2, 2)]  # the last part is smaller: it ends where its own size puts it
    taus = [window.backward(clipper, model(torch.ones(n, 3))[:, 0], parts).thresholds.tolist() for n, parts in sizes]
    assert taus == [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [3, 4]]
