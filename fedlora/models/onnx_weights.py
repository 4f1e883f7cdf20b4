"""Weights out of an ONNX graph, under the names that they had in the PyTorch model it was exported from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return all initialisers of the graph; matrices of linear layers as [out, in], named like the bias they belong to.

    An export keeps the names of all parameters but those of linear layers' matrices, which it transposes: "x.weight" becomes an
    anonymous operand of a MatMul whose result is added to "x.bias". Other anonymous initialisers keep their anonymous names.

    Raises:
        ModelError: The package `onnx` is missing, or the file is not a graph of this form.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ModelError(
            'this model is converted from ONNX; that needs one more package: pip install "fedlora[assets]"'
        ) from None
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # the parser's own, which protobuf does not export
        raise ModelError(f"{path} is not an ONNX model: {error}. Fetch the packaged model again") from error
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    matrices = _matrices(graph, weights)
    named = {name: array for name, array in weights.items() if name not in matrices}
    return {**named, **{name: weights[anonymous].T for anonymous, name in matrices.items()}}


def _matrices(graph: Any, weights: dict[str, Any]) -> dict[str, str]:
    """Return anonymous matrix -> name of the linear layer's weight, found through the bias added to its product."""
    sums: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == "Add":
            for operand in node.input:
                sums.setdefault(operand, []).extend(other for other in node.input if other in weights)
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            continue
        biases = sums.get(node.output[0], [])
        if len(biases) != 1 or not biases[0].endswith(".bias"):
            raise ModelError(f"the graph has a matrix product ({node.name}) without a bias that would name its weights")
        names[node.input[1]] = biases[0].removesuffix("bias") + "weight"
    return names


def strip(weights: dict[str, NDArray[np.float32]], prefix: str) -> dict[str, NDArray[np.float32]]:
    """Return the weights whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
