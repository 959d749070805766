"""What DeepSpeed saved, for another number of ranks, another ZeRO stage, or no DeepSpeed at all.

Its files hold pickles: they are read from the run's own storage only.
"""

import contextlib
import io
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.learning.engine.config import BUFFERS, STATE


def to_universal(folder: Path, target: Path) -> None:
    """Convert the checkpoint in `folder` to DeepSpeed's universal form, which any number of ranks loads.

    Raises:
        Exception: whatever the converter stumbles over; it knows Adam's state and no other.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    with contextlib.redirect_stdout(io.StringIO()):  # it tells its steps on stdout, which is for results
        main(
            Namespace(
                input_folder=str(folder / STATE),
                output_folder=str(target / STATE),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def saved_weights(folder: Path, kind: str) -> dict[str, Tensor]:
    """Return weights and buffers of a checkpoint, whole and on the CPU, whatever engine saved it.

    Args:
        kind: of the engine, as `Engine.kind` says it.
    """
    if kind == "local":
        state: dict[str, Tensor] = torch.load(folder / f"{STATE}.pt", map_location="cpu", weights_only=True)[
            "method"
        ]
        return state
    if kind == "zero-0":
        file = folder / STATE / "mp_rank_00_model_states.pt"
        return dict(torch.load(file, map_location="cpu", weights_only=False)["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=STATE)
    return dict(weights) | saved_buffers(folder)


def saved_buffers(folder: Path) -> dict[str, Tensor]:
    """Return the buffers of a checkpoint that DeepSpeed saved: it leaves them out of its universal form."""
    return dict(torch.load(folder / STATE / BUFFERS, map_location="cpu", weights_only=True))
