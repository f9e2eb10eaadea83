"""Gradient checkpointing of ComfyUI's video DiTs, right at every depth.

ComfyUI's DiTs hand one dict of options to all blocks and write the number of the block into it as they go. What is
computed again in the backward pass would read the last block's number, so patches would act as in another block. Here
each call keeps the options that it had. And what is around a model only while it runs (hooks, a mode) is put around it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

DEPTHS = (0, 1, 2, 3)


@contextmanager
def checkpointed(
    dit: nn.Module, depth: int, again: Callable[[], AbstractContextManager] = nullcontext
) -> Iterator[None]:
    """The DiT with its activations dropped in the forward pass and computed again in the backward pass.

    depth  0 off, 1 the whole model, 2 each block, 3 each attention and feed-forward within the blocks. The deeper, the
           more is kept for the backward pass and the less is held while one piece is computed again.
    again  makes the context in which a piece is computed again: what the caller has around the forward pass, which is
           over by then
    """
    if depth not in DEPTHS:
        raise ValueError(f"The depth of gradient checkpointing is {depth}; choose one of {DEPTHS}.")
    with ExitStack() as stack:
        for module in _pieces(dit, depth):
            stack.enter_context(_recomputed(module, again))
        yield


def _pieces(dit: nn.Module, depth: int) -> list[nn.Module]:
    if depth == 0:
        return []
    if depth == 1:
        return [dit]
    blocks = [*dit.blocks, *getattr(dit, "vace_blocks", ())]
    if depth == 2:
        return blocks
    return [child for block in blocks for child in block.children() if any(True for _ in child.parameters())]


@contextmanager
def _recomputed(module: nn.Module, again: Callable[[], AbstractContextManager]) -> Iterator[None]:
    own = module.forward

    def forward(*args, **kwargs):
        args = [_kept(value) for value in args]
        kwargs = {name: _kept(value) for name, value in kwargs.items()}
        contexts = {"context_fn": lambda: (nullcontext(), again())}
        return checkpoint(own, *args, use_reentrant=False, preserve_rng_state=False, **contexts, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _kept(value: Any) -> Any:
    """A dict of options as it is now: core goes on writing into the one that it gave."""
    return dict(value) if isinstance(value, dict) else value
