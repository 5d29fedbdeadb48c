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
        with _Operations(hooks.where, say):
            yield
    finally:
        hooks.remove()


def describe(values: Tensor) -> str:
    """Shape and what of it is not finite."""
    finite = values.isfinite()
    shape = "x".join(map(str, values.shape)) or "scalar"
    if finite.all():
        largest = f", largest {values.abs().max().item():.3g}" if values.numel() else ""
        return f"{shape}{largest}"
    return f"{shape}, {int(values.isnan().sum())} NaN, {int(values.isinf().sum())} infinite"


class _Hooks:
    """Looks at what each module gives, and at the gradients of that."""

    def __init__(self, model: nn.Module, say: Say) -> None:
        self._say, self._handles, self._stack = say, [], ["the loss"]
        self._told = {"output": False, "gradient": False}
        for name, module in model.named_modules():
            title = f"{name or 'the model'} ({type(module).__name__})"
            self._handles.append(module.register_forward_pre_hook(self._enter(title)))
            self._handles.append(module.register_forward_hook(self._leave(title)))

    def where(self) -> str:
        return self._stack[-1]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, title: str) -> Callable[..., None]:
        return lambda *_: self._stack.append(title)

    def _leave(self, title: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            self._stack.pop()
            for values in _floats(output):
                self._look("output", title, values)
                if values.requires_grad:
                    values.register_hook(partial(self._look, "gradient", title))  # type: ignore[no-untyped-call]

        return look

    def _look(self, kind: str, title: str, values: Tensor) -> None:
        if not self._told[kind] and not values.isfinite().all():
            self._told[kind] = True
            what = "output" if kind == "output" else "gradient of the output"
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
