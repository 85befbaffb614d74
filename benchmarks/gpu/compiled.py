"""Stage 5: the training step with compiled networks, as long runs take it, and beside the published loop.

Under LRKD_WARM torch fills its cache on the disk by compiling what is measured here.
"""

import os

from benchmarks.gpu import speeds
from benchmarks.gpu.stage import begin

if __name__ == "__main__":
    begun = begin(__doc__)
    if os.environ.get("LRKD_WARM"):
        speeds.warm(begun)
        raise SystemExit(0)
    raise SystemExit(speeds.run(begun, speeds.compiled(begun)) > 0)
