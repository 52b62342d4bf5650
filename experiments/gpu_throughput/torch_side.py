"""The PyTorch side: timm's networks, torch.compile, fused AdamW, autocast to bfloat16, no gradients of what is frozen.

Convolutional networks have their channels last; attention is scaled_dot_product_attention; images are bytes on the
device, normalised in the step, as on the other side.
"""

import gc
import os
import time

import timm
import torch
from worker import serve

NAMES = {
    "vit_b16": "vit_base_patch16_224", "vit_s16": "vit_small_patch16_224", "vit_ti16": "vit_tiny_patch16_224",
    "resnet50": "resnet50", "resnet18": "resnet18", "vgg16": "vgg16", "vgg11": "vgg11",
}  # fmt: skip
NUM_CLASSES = 1000
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
# "compile" or "eager".
MODE = os.environ["TORCH_SIDE_MODE"]


def trained_parts(model, name, row):
    """Return the modules that are trained, as `bench_jobs.last_third` chooses them."""
    if row == "head":
        return [model.get_classifier()]
    if row == "all":
        return [model]
    if name.startswith("vit"):
        return [*model.blocks[-(len(model.blocks) // 3) :], model.norm, model.head]
    if name.startswith("resnet"):
        return [model.layer4, model.get_classifier()]
    # After the last max-pool but one.
    pools = [index for index, layer in enumerate(model.features) if isinstance(layer, torch.nn.MaxPool2d)]
    return [*model.features[pools[-2] + 1 :], model.pre_logits, model.get_classifier()]


def build(row):
    """Return the network with its frozen part in inference mode, and the params to train."""
    name, size = row["model"], row["image_size"]
    options = {"img_size": size} if name.startswith("vit") else {}
    torch.manual_seed(0)
    model = timm.create_model(NAMES[name], num_classes=NUM_CLASSES, **options).to(DEVICE)
    if not name.startswith("vit"):
        model = model.to(memory_format=torch.channels_last)
    model.requires_grad_(False).eval()
    for part in trained_parts(model, name, row["row"]):
        part.requires_grad_(True).train()
    return model, [param for param in model.parameters() if param.requires_grad]


def prepare(row):
    """Return what takes steps, and what reports on them."""
    # What was compiled for rows before would count, and be kept.
    torch._dynamo.reset()
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, params = build(row)
    optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.05, fused=HAS_GPU)
    size, batch_size = row["image_size"], row["batch_size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, size, size, 3), generator=generator, dtype=torch.uint8).to(DEVICE)
    labels = torch.randint(0, NUM_CLASSES, (batch_size,), generator=generator).to(DEVICE)
    mean = torch.tensor([0.485, 0.456, 0.406], device=DEVICE).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225], device=DEVICE).view(1, 3, 1, 1) * 255
    layout = torch.contiguous_format if row["model"].startswith("vit") else torch.channels_last

    def loss_of(images, labels):
        x = ((images.permute(0, 3, 1, 2).float() - mean) / std).contiguous(memory_format=layout)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=row["dtype"] == "bfloat16"):
            scores = model(x)
        return torch.nn.functional.cross_entropy(scores.float(), labels)

    compute = torch.compile(loss_of) if MODE == "compile" else loss_of
    compile_s = 0.0

    def steps(count):
        nonlocal compile_s
        began = time.perf_counter()
        for _ in range(count):
            loss = compute(images, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # Waits for the device.
        if not torch.isfinite(loss).item():
            raise ValueError("the loss is not finite")
        seconds = time.perf_counter() - began
        # The first call is the one that compiles.
        compile_s = compile_s or seconds
        return seconds

    def report():
        memory = torch.cuda.max_memory_allocated() / 1e9 if HAS_GPU else None
        return {"memory_gb": memory, "compile_s": compile_s, "gflops_per_image": None}

    return steps, report


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    # As JAX multiplies float32 on GPUs.
    torch.set_float32_matmul_precision("high")
    device = torch.cuda.get_device_name() if HAS_GPU else "cpu"
    serve(prepare, {"device": device, "versions": f"torch {torch.__version__}, timm {timm.__version__}, {MODE}"})
