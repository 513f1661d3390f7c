"""Where a worker computes, and on how many threads."""

import cv2
import torch


def pick_device(device: str) -> str:
    """Turn "auto" into the GPU that Ray assigned, or the CPU where it assigned none."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int | None) -> None:
    """Let the calling thread compute on `count` threads; None leaves torch's choice.

    Call it in the thread that computes. The count is each thread's own in OpenMP, and Ray, which constructs a
    worker in one thread and calls it in another, sets OMP_NUM_THREADS=1 for workers of one CPU or less: set in the
    constructor alone, matrix products would run on a single thread. A constructor takes 1: helpers that it
    started would stay, and with more threads than processors OpenMP's helpers sleep between loops instead of
    spinning, which made the same work take a quarter longer.
    """
    cv2.setNumThreads(1)  # pictures are resized side by side already
    if count:
        torch.set_num_threads(count)
