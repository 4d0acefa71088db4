"""What a computation needs, counted on the meta device: no weights, no GPU, a few seconds for the full ZeroScope.

`PeakBytes` watches every tensor that is born and dies while it is entered, so views, checkpointing and autograd's saved
tensors are counted as they are. On the meta device attention would fall back to the formula that stores all scores;
it is counted as the fused kernel that CUDA really runs. `count_flop_by_dtype` says in which precision the matrix
products and convolutions run, which decides whether a GPU's tensor cores can take them.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class _FusedAttention(TorchDispatchMode):
    """Watches every operation inside the `with` block, with attention as the one kernel that CUDA runs."""

    def __enter__(self):
        # replaced by name, since a torch-function mode would not be active when checkpointing recomputes
        self._attention, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _fused_attention
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        F.scaled_dot_product_attention = self._attention


class PeakBytes(_FusedAttention):
    """Inside the `with` block, `peak` is the most bytes alive at once among tensors created in it."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {x.untyped_storage() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in inputs:
                self._born(storage)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.alive -= size


def _fused_attention(query, key, value, *_, **__) -> torch.Tensor:
    """Attention with the fused kernel's memory: beside its output, one number per query is kept for the backward."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, query.requires_grad)[0]


class _FlopByDtype(_FusedAttention):
    def __init__(self):
        super().__init__()
        self.flop: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            dtype = next(x.dtype for x in tree_leaves(args) if isinstance(x, torch.Tensor))
            self.flop[str(dtype).removeprefix("torch.")] += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flop_by_dtype(work: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations of `work()` by the precision they run in: {"bfloat16": ..., "float32": ...}.

    `work` runs on the meta device. Matrix products, convolutions and attention are counted, forward, backward and
    recomputed; a multiply-add is two.
    """
    with _FlopByDtype() as counted:
        work()
    return dict(counted.flop)


class TrainingBytes(NamedTuple):
    """Bytes of the frozen model, of the trained parameters with the optimizer's state, of activations and gradients."""

    model: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        model, trained, activations = (f"{size / 1e9:.2f}" for size in self)
        return (
            f"{self.total / 1e9:.2f} GB for a training step with one reference clip (model {model}, adapters and "
            f"optimizer {trained}, activations and gradients {activations}), without the CUDA context"
        )


def training_bytes(
    model_bytes: int, learned: Iterable[torch.Tensor], work: Callable[[], object], state: int = 8
) -> TrainingBytes:
    """What a training step needs. `work` runs both passes on the meta device for a frozen model of `model_bytes`.

    `learned` are the trained parameters: beside their gradients, which are in the peak, each number has a master in
    fp32 and `state` bytes of the optimizer's, 8 for AdamW's two moments (optimizer_kinds.py: bytes_of_state).
    """
    with PeakBytes() as counted:
        work()
    return TrainingBytes(model_bytes, (4 + state) * sum(p.numel() for p in learned), counted.peak)
