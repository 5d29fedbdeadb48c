"""The first number of a forward and backward pass that is not finite, and where it appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Say = Callable[[str], None]


@contextmanager
def traced(model: nn.Module, say: Say) -> Iterator[None]:
    """Tell of the first operation that makes NaN of numbers, and of the modules whose outputs are not finite first.

    Infinities are told of modules only: inside, masks may use them on purpose.
    """
    hooks = _Hooks(model, say)
    try:
        with _Operations(lambda: hooks.stack[-1], say):
            yield
    finally:
        for handle in hooks.handles:
            handle.remove()


def describe(values: Tensor) -> str:
    """Shape and what of it is not finite."""
    finite = values.isfinite()
    shape = "x".join(map(str, values.shape)) or "scalar"
    if finite.all():
        largest = f", largest {values.abs().max().item():.3g}" if values.numel() else ""
        return f"{shape}{largest}"
    return f"{shape}, {int(values.isnan().sum())} NaN, {int(values.isinf().sum())} infinite"


class _Hooks:
    """Looks at what each module gives, and at the gradients of that.

    stack : titles of the modules that are at work, the innermost one last.
    """

    def __init__(self, model: nn.Module, say: Say) -> None:
        self.stack, self.handles = ["the loss"], []
        self._say, self._told = say, set[str]()
        for name, module in model.named_modules():
            title = f"{name or 'the model'} ({type(module).__name__})"
            self.handles.append(module.register_forward_pre_hook(partial(self._enter, title)))
            self.handles.append(module.register_forward_hook(partial(self._leave, title)))

    def _enter(self, title: str, *_: object) -> None:
        self.stack.append(title)

    def _leave(self, title: str, _: nn.Module, __: object, output: object) -> None:
        self.stack.pop()
        for values in _floats(output):
            self._look("output", title, values)
            if values.requires_grad:
                look = partial(self._look, "gradient of the output", title)
                values.register_hook(look)  # type: ignore[no-untyped-call]

    def _look(self, what: str, title: str, values: Tensor) -> None:
        if what not in self._told and not values.isfinite().all():
            self._told.add(what)
            self._say(f"first {what} that is not finite: {title}, {describe(values)}")


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at each operation until one makes NaN."""

    def __init__(self, where: Callable[[], str], say: Say) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where, self._say, self._told = where, say, False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if self._told:
            return operation(*args, **(kwargs or {}))
        taken = [describe(values) for values in _floats((args, kwargs or {}))]
        known = any("NaN" in one for one in taken)
        result = operation(*args, **(kwargs or {}))
        # memory that nobody wrote to yet may hold anything
        if taken and not known and "empty" not in str(operation):
            made = next((values for values in _floats(result) if values.isnan().any()), None)
            if made is not None:
                self._told = True
                inputs = "; ".join(taken)
                self._say(
                    f"first operation that makes NaN: {operation} in {self._where()}, {describe(made)}, of {inputs}"
                )
        return result


def _floats(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
