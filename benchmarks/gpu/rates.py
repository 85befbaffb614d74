"""Stage 1: which device this is, and what a large matrix product and a copy reach on it."""

import torch

from benchmarks.gpu.stage import Stage, begin
from benchmarks.train_step import rate, timed


def copy_rate(device: torch.device, size: int, repeats: int = 10) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes within the device's memory."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, repeats, min)


def transfer_rate(device: torch.device, size: int, repeats: int = 10) -> float:
    """Bytes a second from pinned memory of the host to the device."""
    source = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / timed(lambda: target.copy_(source, non_blocking=True), device, repeats, min)


def measure(stage: Stage) -> None:
    """Write gpu-device.csv, a row a figure."""
    device, rows = stage.device, []
    memory = torch.cuda.mem_get_info(device)[1] if stage.gpu else 0
    rows.append({"what": "memory", "value": round(memory / 2**30, 1), "unit": "GiB", **stage.stamp()})
    kinds = [("bfloat16", torch.bfloat16), ("float32 as TF32", torch.float32)]
    for name, dtype in kinds[1:] if stage.rehearse else kinds:
        reached = round(rate(device, dtype, 2 if stage.rehearse else 10) / 1e12, 3)
        rows.append({"what": f"matrix product, {name}", "value": reached, "unit": "TFLOP/s", **stage.stamp()})
        stage.write("gpu-device", rows)
    size = 2**24 if stage.rehearse else 2**32
    for what, found in (("copy", copy_rate(device, size)), ("from the host", transfer_rate(device, size // 8))):
        rows.append({"what": what, "value": round(found / 1e9, 1), "unit": "GB/s", **stage.stamp()})
        stage.write("gpu-device", rows)


if __name__ == "__main__":
    measure(begin(__doc__))
