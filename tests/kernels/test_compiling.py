"""Every kernel, compiled for a card that need not be there."""

import os
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from ovss_core.kernels import (
    affinity_triton, attention_triton, averages_triton, class_sums_triton, evidence_triton, finite_triton, groups_triton, guidance_triton,
    labels_triton, norms_triton, parts_triton, pixels_triton, products_triton
)
from ovss_core.kernels.products import TILES

POINTERS = dict.fromkeys(
    "query key tokens added weight bias summed normed total repaired weights "
    "attention".split(), "*bf16"
) | dict.fromkeys("mean inverse cosines totals class_attention self_attention confidence".split(), "*fp32")
EVEN = ("_window", "_head", "_token", "_row", "depth", "width", "channels", "hidden")
NUMBERS = dict.fromkeys("scale epsilon factor cut gain".split(), "fp32")

def build(kernel, constants, warps=8, stages=3, **types):
    names = kernel.arg_names
    known = POINTERS | NUMBERS | types
    signature = {name: known.get(name, "i32") for name in names if name not in constants}
    signature |= {name: "constexpr" for name in constants}
    # what a launch finds of its arguments: pointers, and the strides and channels of real towers, are multiples of 16
    even = [n for n, kind in signature.items() if kind[0] == "*" or n.endswith(EVEN)]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values, attributes)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(kernel.__name__, len(compiled.asm["cubin"]), compiled.metadata.shared)

for known, tile in ((True, (128, 128)), (False, (64, 256))):
    build(attention_triton.head_mean_kernel,
          {"KNOWN": known, "KEEPS": True, "ADDS": True, "ROWS": tile[0], "COLUMNS": tile[1], "DEPTH": 64},
          mean="*fp32", total="*fp32", log_sums="*fp32", tokens="i32")
build(norms_triton.add_norm_kernel, {"ADDS": True, "TOTALS": True, "ROWS": 4, "COLUMNS": 1024}, 4)
for tile in TILES:
    build(products_triton.quick_gelu_product_kernel, {"EVEN": True, "NEIGHBORS": 8, "ROWS": tile.rows, "COLUMNS": tile.columns,
          "DEPTH": tile.depth}, tile.warps, tile.stages, result="*bf16")
build(guidance_triton.outliers_kernel, {"COLUMNS": 256}, 2, outliers="*i8")
build(guidance_triton.repair_kernel,
      {"REPAIRS": True, "STORES": True, "NORMS": True, "ROWS": 4, "CHANNELS": 1024}, 4, outliers="*i8")
for weighs in (True, False):
    build(guidance_triton.similarity_kernel,
          {"WEIGHS": weighs, "CUTS": True, "ROWS": 64, "COLUMNS": 256, "STEP": 64}, patches="*bf16")
for adds in (True, False):
    build(averages_triton.average_kernel, {"ADDS": adds, "WIDE": 256, "ROWS": 64, "COLUMNS": 128, "STEP": 32}, 4, patches="*bf16",
          weights="*bf16", added="*bf16", result="*bf16", share="fp32")
build(guidance_triton.guidance_kernel, {"CUTS": True, "ROWS": 16, "COLUMNS": 256}, 4)
LABELS = dict.fromkeys("scores across confidences seconds".split(), "*fp32") | dict.fromkeys(
    "names sizes boxes edits classes".split(), "*i64") | dict.fromkeys("renamed members".split(), "*i32") | {
    "labels": "*u8", "floor": "fp32", "width": "i32", "allowed": "*i8"}
for whole, maps in ((True, 16), (False, 32)):
    cut = {"PIXELS": 128, "COLUMNS": 64, "WHOLE": whole, "PRECISION": "tf32x3" if whole else "tf32", "LINES": 16}
    build(labels_triton.purified_kernel,
          {"EDITS": 8, "RESIDUAL": True, "RANKS": True, "MAPS": maps, "ONE_TILE": whole, **cut}, 4, **LABELS)
    build(labels_triton.probable_kernel, {"EVERYONE": False, "FLOOR": True, "RANKS": True, "MAPS": 32, **cut}, 4, **LABELS)
build(class_sums_triton.class_sums_kernel, {"MASKED": True, "BLOCK": 4096},
      label="*i64", inside="*i1", pixels="*i64", sums="*fp64")
build(class_sums_triton.margin_sums_kernel, {"MASKED": True, "BLOCK": 4096}, confidence="*fp32", second="*fp32",
      inside="*i1", scores="*fp64", margins="*fp64", sure="*i64", least="fp32")
build(parts_triton.parts_kernel, {"PLACES": 256, "DIAGONAL": True, "UNION": True}, 2,
      regions="*i8", labels="*i32", corners="*i32", union="*i8")
build(pixels_triton.windows_kernel, {"BLOCK": 1024}, 4, pixels="*u8", first="*i64", row_pixels="*i64", windows="*u8",
      width="i32")
build(pixels_triton.planes_kernel, {"BLOCK": 1024}, 4, pixels="*u8", first="*i64", row_pixels="*i64", center="*fp32",
      spread="*fp32", planes="*bf16", width="i32")
build(pixels_triton.patches_kernel, {"SIDE": 16, "BLOCK": 1024}, 4, planes="*bf16", patches="*bf16", width="i32")
build(pixels_triton.regions_kernel, {"SAMPLES": 256}, 4, pixels="*u8", first="*i64", row_pixels="*i64", image="*i64",
      corners="*i64", regions="*u8")
AFFINITY = dict.fromkeys("attention row_scale column_scale transfer".split(), "*fp32")
build(affinity_triton.balance_kernel, {"ROUNDS": 3, "TINY": affinity_triton._TINY, "ROWS": 32, "COLUMNS": 256}, 8, **AFFINITY)
build(affinity_triton.transfer_kernel, {"SIDE": 32}, 4, **AFFINITY)
FLOATS = "scores log_total low high window_peaks window_low window_high peaks probability normalized spread refined kept"
WHOLE = "starts sizes chosen place_of column_of counts active distractors"
EVIDENCE = dict.fromkeys(FLOATS.split(), "*fp32") | dict.fromkeys(WHOLE.split(), "*i32") | dict.fromkeys(
    "slots index needed".split(), "*i64") | dict.fromkeys("used regions complete".split(), "*i8") | dict.fromkeys(
    "thresholds table ranked normal".split(), "*fp64") | {"levels": "*i16", "source": "*i32"}
build(evidence_triton.statistics_kernel, {"PHRASES": 16, "PATCHES": 256}, 4, **EVIDENCE)
for alone in (False, True):
    build(evidence_triton.peaks_kernel, {"ALONE": alone, "COLUMNS": 16, "PATCHES": 256}, 4, **EVIDENCE)
    build(evidence_triton.active_kernel, {"TESTS": not alone, "COMPETES": True, "LIKELY": True, "LEAST": 0.999, "SLACK": 1e-6,
          "COLUMNS": 4096, "PLACES": 256}, 4, **EVIDENCE)
    build(evidence_triton.maps_kernel, {"ALONE": alone, "PATCHES": 256}, 4, **EVIDENCE)
build(evidence_triton.refined_kernel, {"FLATNESS": 1e-5, "EPSILON": 1e-8, "PATCHES": 256}, 4, **EVIDENCE)
build(evidence_triton.null_kernel, {"TARGET": 2.4, "CEILING": 0.5, "FLOOR": 0.1, "ENOUGH": 30, "LEAST": 1e-3, "RANKS": 128},
      4, **EVIDENCE | {"distractors": "i32"})
build(evidence_triton.decide_kernel, {"COMPETES": True, "LIKELY": True, "SLACK": 1e-6, "COLUMNS": 4096, "PLACES": 64}, 4,
      **EVIDENCE | {"kept": "*i64"})
build(evidence_triton.take_kernel, {"PATCHES": 256}, 2, **EVIDENCE)
build(evidence_triton.needs_kernel, {"NULLS": True, "UNITS": 64}, 1, **EVIDENCE | {"kept": "*i32"})
GROUPS = dict.fromkeys("distances sums".split(), "*fp32") | dict.fromkeys("weights maps".split(), "*fp64") | dict.fromkeys(
    "classes members limits boxes image corners needed".split(), "*i64") | dict.fromkeys(
    "complete regions used".split(), "*i8") | dict.fromkeys("parts labels order".split(), "*i32")
build(groups_triton.groups_kernel, {"PLACES": 64}, 4, **GROUPS, threshold="fp32")
build(groups_triton.levels_kernel, {"PATCHES": 1024}, 4, **GROUPS | {"levels": "*i16"})
build(groups_triton.boxes_kernel, {"PATCHES": 1024, "PLACES": 64, "BOXES": 32}, 4, **GROUPS)
build(groups_triton.list_kernel, {"ROWS": 4096}, 8, **GROUPS | {"total": "i32"})
build(finite_triton.sound_kernel, {"ATTENDS": True, "BLOCK": 4096}, features="*fp32", attention="*fp32", sound="*i8",
      weights="i32")
"""
KERNELS = {
    "head_mean_kernel",
    "add_norm_kernel",
    "quick_gelu_product_kernel",
    "outliers_kernel",
    "repair_kernel",
    "similarity_kernel",
    "guidance_kernel",
    "purified_kernel",
    "probable_kernel",
    "class_sums_kernel",
    "margin_sums_kernel",
    "average_kernel",
    "parts_kernel",
    "windows_kernel",
    "planes_kernel",
    "patches_kernel",
    "regions_kernel",
    "balance_kernel",
    "transfer_kernel",
    "sound_kernel",
    "statistics_kernel",
    "peaks_kernel",
    "active_kernel",
    "maps_kernel",
    "refined_kernel",
    "null_kernel",
    "decide_kernel",
    "take_kernel",
    "needs_kernel",
    "groups_kernel",
    "levels_kernel",
    "boxes_kernel",
    "list_kernel",
}
HOPPER_SHARED = 227 << 10


def test_every_kernel_compiles_for_a_hopper_card_and_fits_on_its_chip() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _, _ in rows} == KERNELS
    assert min(int(size) for _, size, _ in rows) > 1000
    assert max(int(shared) for _, _, shared in rows) <= HOPPER_SHARED
