"""One language-model training job, usable alone: `python -m trainer CONFIG`."""
