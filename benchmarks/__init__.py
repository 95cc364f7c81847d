"""Programs that measure the product, each run as `python -m benchmarks.NAME`."""
