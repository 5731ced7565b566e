"""RadiGlow: fine-tune BLIP-2 on radiology captions with two small GPUs."""

import logging

__version__ = "0.1.0"

# bitsandbytes looks on a CPU for a kernel that nobody installs, and says so in every process.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
