"""Write what timm builds under each name of its Vision Transformers: python -m tests.golden.make_timm_names.

Needs timm and torch. No net gets any weights.
"""

import json
from pathlib import Path
from typing import Any

NAMES = Path(__file__).with_name("timm_names.json")


def facts(model: Any) -> dict[str, Any]:
    """Say what a net without classes is."""
    block = model.blocks[0]
    return {
        "class": type(model).__name__,
        "parameters": sum(value.numel() for value in model.parameters()),
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "image_size": list(model.patch_embed.img_size),
        "patch_size": model.patch_embed.patch_size[0],
        "activation": type(block.mlp.act).__name__ + getattr(block.mlp.act, "approximate", ""),
        "norm_epsilon": block.norm1.eps,
        "prefix_tokens": model.num_prefix_tokens,
        "positions": model.pos_embed.shape[1],
        "global_pool": model.global_pool,
        "is_norm_after_pooling": hasattr(model.fc_norm, "weight"),
    }


def main() -> None:
    """Write the facts of every net that is made of plain blocks."""
    import timm
    import torch

    names = sorted(name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module))
    lines = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        if type(model.blocks[0]).__name__ == "Block" and hasattr(model.blocks[0].mlp, "act"):
            lines.append(f"{json.dumps(name)}: {json.dumps(facts(model))}")
    NAMES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
