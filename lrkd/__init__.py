"""Knowledge distillation for low-resolution face recognition: models, losses, data, training, verification."""

from lrkd.errors import ConfigError, DataError, LrkdError, RunError, TrainingError

__all__ = ["ConfigError", "DataError", "LrkdError", "RunError", "TrainingError", "__version__"]
__version__ = "0.2.0"
