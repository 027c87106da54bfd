"""The full-size networks on a GPU: seconds per clip, memory, and what the card is used for.

    python benchmarks/gpu.py [--json [FILE]] [--full] [--sizes 480x640,480x832] [--frames 81]

Random weights at the public sizes, bf16. For every size: the autoencoder's encoding of a condition
map and decoding of the clip, and one step of the 1.3B video DiT with guidance (both branches),
after a step to warm up; a clip is that step times 50, and both. With --full all 50 steps are run.
TFLOP/s are those of the DiT's matrix products, attention and convolutions, as
torch.utils.flop_counter counts them, over a step's time; the card's rate is that of a large bf16
matrix product in the same run. Then VGGT-1B (aggregator, camera, depth and point heads) in batches
of timesteps. Without a CUDA GPU this says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from wristaugment.models.flow import make_schedule, predict, sample_latents
from wristaugment.models.libraries import AutoencoderKLWan
from wristaugment.models.vggt import VGGT, VGGTConfig
from wristaugment.models.video_dit import (
    OFFICIAL,
    VideoDiT,
    VideoDiTConfig,
    latent_shape,
    to_precision,
)

STEPS, SHIFT, GUIDANCE = 50, 5.0, 5.0  # the released sampler


def settle(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, turns: int = 1) -> float:
    """The best wall time of `turns` calls, each until the device is done."""
    best = float("inf")
    for _ in range(turns):
        settle(device)
        start = time.perf_counter()
        call()
        settle(device)
        best = min(best, time.perf_counter() - start)
    return best


def forget_peak(device: torch.device) -> None:
    """Give back what is cached; the peak is measured from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gigabytes(device: torch.device) -> float | None:
    """The most memory in use since `forget_peak`, in 1e9 bytes; None where it is not counted."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """TFLOP/s of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / seconds(lambda: torch.mm(a, b), device, turns=10) / 1e12


@torch.no_grad()
def measure_dit(
    config: VideoDiTConfig,
    sizes: list[tuple[int, int]],
    frames: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    full: bool = False,
) -> list[dict]:
    """For every size (H, W): seconds of a guided step and of all, FLOP of a step, memory."""
    with device:
        network = to_precision(VideoDiT(config).eval().requires_grad_(False), dtype)
        text = torch.randn(1, config.context_tokens, config.text_dim)
        anchors = min(frames, config.frames, config.context_tokens // config.views)
        ext = torch.randn(1, config.views, anchors, config.ext_dim)
        positive, negative = network.encode_context(text, ext), network.encode_context(text)
    timestep = make_schedule(STEPS, SHIFT).timesteps[0].to(device)
    out = []
    for height, width in sizes:
        shape = (1, *latent_shape(config, frames, height, width))
        noise, condition = (torch.randn(shape, device=device) for _ in range(2))

        def step(noise=noise, condition=condition) -> object:
            return predict(network, noise, timestep, condition, positive, negative)

        forget_peak(device)
        with FlopCounterMode(display=False) as counter:
            step()  # warms up, too
        one = seconds(step, device, turns=2)
        found = {"step_seconds": one, "step_tflop": counter.get_total_flops() / 1e12}
        found["step_tflops"] = found["step_tflop"] / one
        found["steps_seconds"], found["steps_measured"] = STEPS * one, 1
        if full:
            found["steps_seconds"] = seconds(
                lambda noise=noise, condition=condition: sample_latents(
                    network, noise, condition, positive, negative,
                    steps=STEPS, guidance=GUIDANCE, shift=SHIFT,
                ),
                device,
            )  # fmt: skip
            found["steps_measured"] = STEPS
        out.append({**found, "peak_gigabytes": peak_gigabytes(device)})
    return out


@torch.no_grad()
def measure_autoencoder(
    config: dict,
    sizes: list[tuple[int, int]],
    frames: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[dict]:
    """For every size (H, W): seconds of encoding and of decoding a clip, and memory.

    Args:
        config: arguments of `AutoencoderKLWan`; none are the public ones.
    """
    with device:
        network = AutoencoderKLWan(**config).eval().to(dtype)
    out = []
    for height, width in sizes:
        video = torch.rand(1, 3, frames, height, width, device=device, dtype=dtype) * 2 - 1
        forget_peak(device)
        latents = network.encode(video).latent_dist.mode()
        network.decode(latents)
        out.append(
            {
                "encode_seconds": seconds(lambda v=video: network.encode(v), device),
                "decode_seconds": seconds(lambda z=latents: network.decode(z), device),
                "peak_gigabytes": peak_gigabytes(device),
            }
        )
    return out


@torch.no_grad()
def measure_vggt(
    config: VGGTConfig,
    views: int,
    size: tuple[int, int],
    batches: list[int],
    device: torch.device,
    dtype: torch.dtype,
) -> list[dict]:
    """For every number of timesteps in a batch: frames (views of timesteps) per second, memory.

    Ends at the first batch that the device's memory does not hold.
    """
    with device:
        network = VGGT(config).eval().to(dtype)
    out = []
    for timesteps in batches:
        images = torch.rand(timesteps, views, 3, *size, device=device, dtype=dtype)
        forget_peak(device)
        try:
            network(images)
            one = seconds(lambda images=images: network(images), device, turns=3)
        except torch.cuda.OutOfMemoryError:
            if not out:
                raise
            break  # what fits is measured
        out.append(
            {
                "timesteps": timesteps,
                "views": views,
                "seconds": one,
                "frames_per_second": timesteps * views / one,
                "peak_gigabytes": peak_gigabytes(device),
            }
        )
    return out


def measure(sizes: list[tuple[int, int]], frames: int, device: torch.device, *, full: bool) -> dict:
    """All figures at the public sizes."""
    dtype = torch.bfloat16
    rate = matrix_rate(device, dtype)
    coding = measure_autoencoder({}, sizes, frames, device, dtype)
    forget_peak(device)
    dit = measure_dit(OFFICIAL, sizes, frames, device, dtype, full=full)
    forget_peak(device)
    vggt = measure_vggt(VGGTConfig(), 2, (294, 518), [1, 8, 32], device, dtype)
    return {
        "device": torch.cuda.get_device_name(device),
        "matrix_tflops": rate,
        "clips": clips(sizes, frames, coding, dit, rate),
        "vggt": vggt,
    }


def clips(
    sizes: list[tuple[int, int]], frames: int, coding: list[dict], dit: list[dict], rate: float
) -> list[dict]:
    """What a clip of each size costs in all, from what its parts cost."""
    return [
        {
            "size": list(size),
            "frames": frames,
            "seconds_per_clip": a["encode_seconds"] + d["steps_seconds"] + a["decode_seconds"],
            "share_of_matrix_rate": d["step_tflops"] / rate,
            "dit": d,
            "autoencoder": a,
        }
        for size, a, d in zip(sizes, coding, dit, strict=True)
    ]


def table(found: dict) -> list[str]:
    """The figures for people."""

    def memory(part: dict) -> str:
        peak = part["peak_gigabytes"]
        return "memory not counted" if peak is None else f"{peak:.1f} GB"

    out = [f"{found['device']}: {found['matrix_tflops']:.0f} TFLOP/s in a bf16 matrix product"]
    for clip in found["clips"]:
        height, width = clip["size"]
        d, a = clip["dit"], clip["autoencoder"]
        how = (
            f"all {STEPS} steps measured"
            if d["steps_measured"] == STEPS
            else f"{d['steps_measured']} step measured, times {STEPS}"
        )
        out += [
            f"{width}x{height}, {clip['frames']} frames: {clip['seconds_per_clip']:.1f} s a clip "
            f"({how}; the autoencoder measured)",
            f"  video DiT    {d['step_seconds']:.3f} s a guided step of {d['step_tflop']:.0f} "
            f"TFLOP: {d['step_tflops']:.0f} TFLOP/s, {100 * clip['share_of_matrix_rate']:.0f}% of "
            f"the card's; {memory(d)}",
            f"  autoencoder  {a['encode_seconds']:.2f} s to encode, {a['decode_seconds']:.2f} s to "
            f"decode; {memory(a)}",
        ]
    for row in found["vggt"]:
        out.append(
            f"VGGT-1B, {row['timesteps']} timesteps of {row['views']} views: "
            f"{row['frames_per_second']:.1f} frames a second; {memory(row)}"
        )
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 without a GPU, 1 where its memory is too small."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default="480x640,480x832", help="HxW of the clips, by commas")
    parser.add_argument("--frames", type=int, default=81, help="of a clip, 4n + 1")
    parser.add_argument("--full", action="store_true", help=f"run all {STEPS} steps")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="- = stdout")
    args = parser.parse_args(arguments)
    try:
        sizes: list[tuple[int, int]] = []
        for text in args.sizes.split(","):
            height, width = map(int, text.split("x"))
            latent_shape(OFFICIAL, args.frames, height, width)
            sizes.append((height, width))
    except ValueError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2
    if torch.cuda.is_available():
        try:
            found = measure(sizes, args.frames, torch.device("cuda"), full=args.full)
        except torch.cuda.OutOfMemoryError as error:
            print(f"benchmark: error: {str(error).splitlines()[0]}: give smaller --sizes or fewer "
                  "--frames", file=sys.stderr)  # fmt: skip
            return 1
        lines = table(found)
    else:
        found = {"device": None}
        lines = ["no CUDA GPU here: nothing was measured"]
    print("\n".join(lines), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        text = json.dumps(found, indent=2) + "\n"
        sys.stdout.write(text) if args.json == "-" else Path(args.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
