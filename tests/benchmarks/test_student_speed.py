"""`benchmarks.student_speed` on a machine with a GPU, as far as one without can tell."""

import shutil

from benchmarks import student_speed as speed
from lrkd.training.schedule import threads


def test_a_file_alone_is_measured_on_the_cpu_and_its_peers_on_both(tmp_path, monkeypatch):
    file = shutil.copy(speed.STUDENT, tmp_path / "alone.onnx")
    calls, peer = speed.calls, speed.student("mobile-xs")

    def on(contender, threads, batch, device):
        """What runs on the GPU is the same without its work."""
        if device == "cpu":
            yield from calls(contender, threads, batch, device)
        elif contender.module is not None:
            yield "torch bf16, CUDA graph", lambda: None

    monkeypatch.setattr(speed.torch.cuda, "is_available", lambda: True)
    for name, stand_in in {
        "calls": on,
        "peers": lambda px: [peer],
        "limits": lambda device: {"product_gflops": 1.0, "copy_gb_s": 1.0},
        "memory": lambda contender, batch: {},
        "write_files": lambda contender, folder, generator: None,
        "device_name": str,
    }.items():
        monkeypatch.setattr(speed, name, stand_in)
    with threads(None):  # their number is as before afterwards
        table = speed.measure(str(file), (1,), 1, 0.0, 0)
    here, there = table[table["device"] == "cpu"], table[table["device"] == "cuda"]
    assert set(here["network"]) == {"alone.onnx", "mobile-xs"}
    assert set(there["network"]) == {"mobile-xs"}
    assert here["student_is_faster"].notna().all()
    assert there["student_is_faster"].isna().all()
