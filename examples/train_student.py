"""Train a small network on pseudo-labels alone: `python -m examples.train_student out/student`.

Scenes are drawn and labelled by the model that ships with ovss, by one host and by two together, and selections are made by
confidence and by agreement of the two. A student learns from each, and is measured on scenes that neither it nor its teacher
has seen. The exact labels serve to measure, and to train one more student that shows what this network can learn. Further
words give the numbers of scenes to train on and to hold out, and the steps of training, the same for each student.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from jobs.cli import main as ovss
from pipelines.label.reader import open_labels

SIZE, BATCH = 112, 8
"""Side of the drawn scenes in pixels; scenes a step."""
ALL, SURE, AGREED = ["--min-confidence", "0"], ["--min-confidence", "0.2"], ["--max-disagreement", "0.2"]
SELECTIONS = {
    "clearclip": {"all": ALL, "margin >= 0.2": SURE, "best half a class": ["--best-share", "0.5"]},
    "sfp,naclip": {"all": ALL, "margin >= 0.2": SURE, "hosts agree": AGREED, "both": [*SURE, *AGREED]},
}
"""Hosts that label, and what `ovss select` is asked for; hosts agree where they differ on a fifth of an image at most."""


class Student(nn.Module):
    """Pixels, uint8 [n, 3, height, width], to logits at half their size; three depths add theirs."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.fine = _block(3, width)
        self.middle = nn.Sequential(_block(width, 2 * width), _block(2 * width, 2 * width, 1))
        deep = [_block(2 * width, 4 * width), _block(4 * width, 4 * width, 1), _block(4 * width, 8 * width)]
        self.coarse = nn.Sequential(*deep, _block(8 * width, 8 * width, 1))
        self.classify = nn.ModuleList(nn.Conv2d(factor * width, classes, 1) for factor in (8, 2, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits, float32 [n, classes, height / 2, width / 2]."""
        fine = self.fine(pixels / 127.5 - 1)
        middle = self.middle(fine)
        logits: Tensor = self.classify[0](self.coarse(middle))
        for layer, features in zip(self.classify[1:], (middle, fine), strict=True):
            logits = _as_large(logits, features) + layer(features)
        return logits


def _block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _as_large(logits: Tensor, other: Tensor) -> Tensor:
    return functional.interpolate(logits, size=other.shape[-2:], mode="bilinear")


def train(pixels: Tensor, labels: Tensor, classes: int, ignored: int, steps: int) -> Student:
    """Return a student of labels, int64 [n, height, width]; pixels are uint8 [n, 3, height, width]."""
    torch.manual_seed(0)
    student = Student(classes)
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randperm(len(pixels))[:BATCH]
        flip = [-1] if torch.rand(()) < 0.5 else []
        logits = student(pixels[chosen].flip(flip))
        wanted = labels[chosen, ::2, ::2].flip(flip)
        loss = functional.cross_entropy(logits, wanted, ignore_index=ignored, reduction="sum")
        optimizer.zero_grad()
        (loss / max(1, int((wanted != ignored).sum()))).backward()
        optimizer.step()
        schedule.step()
    return student.eval()


@torch.inference_mode()
def predict(student: Student, pixels: Tensor) -> Tensor:
    """Return the likeliest class of each pixel, int64 [n, height, width]."""
    batches = pixels.split(BATCH)
    return torch.cat([_as_large(student(batch), batch).argmax(1) for batch in batches])


def mean_iou(labels: Tensor, truth: Tensor, classes: int) -> float:
    """Return the mean intersection over union in percent, of the classes that occur in either, from summed counts."""
    counted = (truth < classes) & (labels < classes)
    pairs = torch.bincount(truth[counted] * classes + labels[counted], minlength=classes**2)
    confusion = pairs.reshape(classes, classes).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float(100 * (confusion.diagonal() / union)[union > 0].mean())


def call(command: str, *arguments: str) -> None:
    """Call ovss, and end where it fails."""
    if ovss([command, *arguments]):
        raise SystemExit(f"ovss {command} did not finish")


def label_scenes(place: Path, count: str, seed: str) -> None:
    """Draw scenes, and label them by each teacher with the margin of each pixel."""
    call("scenes", "--count", count, "--seed", seed, "--size", f"{SIZE}", "--output", f"{place}/scenes")
    for host in SELECTIONS:
        asked = ["--vocabulary", "demo", "--model", "demo", "--host", host, "--confidence", "pixel"]
        call("label", "--images", f"{place}/scenes/images", "--output", f"{place}/{host}", *asked)


def read(labels: Path, scenes: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels [n, 3, height, width], labels and exact labels [n, height, width] of all images that were labelled."""
    samples = list(open_labels(str(labels)).stream(images=True))
    exact = [np.array(Image.open(scenes / "masks" / sample["image_id"]), np.int64) for sample in samples]
    pixels, masks = (torch.stack([sample[name] for sample in samples]) for name in ("pixels", "mask"))
    return pixels, masks, torch.from_numpy(np.stack(exact))


def main(output: str, count: str = "400", held_out: str = "100", steps: str = "1000") -> dict[str, float]:
    """Print and return the mIoU on held-out scenes of teachers, of their students, and of one class everywhere."""
    place, tests = Path(output, "lessons"), Path(output, "held-out")
    label_scenes(place, count, "11")  # the shipped model learned from scenes of seed 0
    label_scenes(tests, held_out, "12")
    lessons = {}
    for host, selections in SELECTIONS.items():
        for number, (name, flags) in enumerate(selections.items()):
            chosen = place / f"{host}-{number}"
            call("select", "--labels", f"{place}/{host}", "--output", str(chosen), *flags)
            lessons[f"student of {host}, {name}"] = read(chosen, place / "scenes")
    pixels, masks, exact = lessons["student of clearclip, all"]
    lessons["student of exact labels"] = (pixels, exact, exact)
    files = open_labels(f"{place}/clearclip")
    classes, ignored = len(files.class_names), files.ignore_index
    taught = {host: read(tests / host, tests / "scenes") for host in SELECTIONS}
    seen, _, truth = taught["clearclip"]
    table = {f"teacher, {host}": mean_iou(masks, truth, classes) for host, (_, masks, _) in taught.items()}
    table["one class everywhere"] = mean_iou(masks.flatten().mode().values.expand_as(truth), truth, classes)
    for name, (pixels, masks, _) in lessons.items():
        student = train(pixels, masks, classes, ignored, int(steps))
        table[name] = mean_iou(predict(student, seen), truth, classes)
        print(f"{name}: {len(pixels)} images, {(masks != ignored).double().mean():.0%} of their pixels")
    print("| labels | mIoU |\n|---|---|")
    for name, iou in table.items():
        print(f"| {name} | {iou:.1f} |")
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
