"""The GPU that Ray gave this process, computing in full float32."""

from __future__ import annotations

import torch

from search_spaces.errors import ConfigError

__all__ = ["given_gpu"]


def given_gpu() -> torch.device:
    """The first GPU that this process sees, after which it computes alike from call to call.

    Scores are compared in their last digits: TF32, which keeps 10 bits, is turned off, and so are kernels that add in
    any order or that are chosen by timing them.

    Raises:
        ConfigError: torch sees none.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "cluster.gpus_per_evaluator",
            f"Ray gave an evaluator a GPU that its torch ({torch.__version__}) cannot use; install a build of torch "
            "for the node's driver, or set 0 to score on CPUs",
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", 0)
