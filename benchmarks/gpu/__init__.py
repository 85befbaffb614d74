"""The stages of `python -m benchmarks.gpu_results`: each a module with a `main`, run in a process of its own."""
