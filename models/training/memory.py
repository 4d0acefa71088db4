"""Peak memory of a computation, counted on the meta device: no weights, no GPU, a few seconds for the full ZeroScope.

`PeakBytes` watches every tensor that is born and dies while it is entered, so views, checkpointing and autograd's saved
tensors are counted as they are. On the meta device attention would fall back to the formula that stores all scores;
it is counted as the fused kernel that CUDA really runs.
"""

import weakref

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Inside the `with` block, `peak` is the most bytes alive at once among tensors created in it."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __enter__(self):
        # replaced by name, since a torch-function mode would not be active when checkpointing recomputes
        self._attention, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _fused_attention
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        F.scaled_dot_product_attention = self._attention

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


def parameter_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers in the precision they have."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
