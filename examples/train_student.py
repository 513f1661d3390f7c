"""Train a small network on pseudo-labels alone: `python -m examples.train_student out/student`.

Scenes are drawn and labelled by the model that ships with ovss, and selections are made of these labels. A student learns
from each, and is measured on scenes that neither it nor its teacher has seen. The exact labels serve to measure, and to train
one more student that shows what this network can learn. Further words give the numbers of scenes to train on and to hold
out, and the rounds of training.
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

SIZE = 112
"""Side of the drawn scenes in pixels."""
SEEDS = {"lessons": 11, "held-out": 12}
"""Of the drawn scenes; the shipped model learned from scenes of seed 0."""
SELECTIONS = {"margin >= 0.2": ["--min-confidence", "0.2"], "best half a class": ["--best-share", "0.5"]}
"""What `ovss select` is asked for."""
MODEL = ["--vocabulary", "demo", "--model", "demo", "--host", "clearclip"]
BATCH = 8


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


def train(pixels: Tensor, labels: Tensor, classes: int, ignored: int, rounds: int) -> Student:
    """Return a student of labels, int64 [n, height, width]; pixels are uint8 [n, 3, height, width]."""
    torch.manual_seed(0)
    student = Student(classes)
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.05)
    steps = rounds * -(-len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(rounds):
        for chosen in torch.randperm(len(pixels)).split(BATCH):
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


def label_scenes(place: Path, name: str, count: int) -> None:
    """Draw scenes, and label them with the margin of each pixel."""
    scenes, output = f"{place}/{name}/scenes", f"{place}/{name}/labels"
    call("scenes", "--count", f"{count}", "--seed", f"{SEEDS[name]}", "--size", f"{SIZE}", "--output", scenes)
    call("label", "--images", f"{scenes}/images", "--output", output, "--confidence", "pixel", *MODEL)


def read(labels: Path, scenes: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels [n, 3, height, width], labels and exact labels [n, height, width] of all images that were labelled."""
    samples = list(open_labels(str(labels)).stream(images=True))
    exact = [np.array(Image.open(scenes / "masks" / sample["image_id"]), np.int64) for sample in samples]
    pixels, masks = (torch.stack([sample[name] for sample in samples]) for name in ("pixels", "mask"))
    return pixels, masks, torch.from_numpy(np.stack(exact))


def main(output: str, count: str = "400", held_out: str = "100", rounds: str = "20") -> dict[str, float]:
    """Print and return the mIoU on held-out scenes of the teacher, of its students, and of one class everywhere."""
    place = Path(output)
    for name, scenes in zip(SEEDS, (count, held_out), strict=True):
        label_scenes(place, name, int(scenes))
    labels = {"all pixels": place / "lessons/labels"}
    for number, (name, flags) in enumerate(SELECTIONS.items()):
        labels[name] = place / f"lessons/selection-{number}"
        call("select", "--labels", str(labels["all pixels"]), "--output", str(labels[name]), *flags)
    files = open_labels(str(labels["all pixels"]))
    classes, ignored = len(files.class_names), files.ignore_index

    seen, taught, truth = read(place / "held-out/labels", place / "held-out/scenes")
    lessons = {f"student, {name}": read(path, place / "lessons/scenes") for name, path in labels.items()}
    pixels, masks, exact = lessons["student, all pixels"]
    one = torch.full_like(truth, int(masks.flatten().mode().values))
    known = {"one class everywhere": one, "teacher": taught}
    table = {name: mean_iou(labelled, truth, classes) for name, labelled in known.items()}
    for name, (pictures, lesson, _) in {**lessons, "student, exact labels": (pixels, exact, exact)}.items():
        student = train(pictures, lesson, classes, ignored, int(rounds))
        table[name] = mean_iou(predict(student, seen), truth, classes)
    print("| labels | mIoU |\n|---|---|")
    for name, iou in table.items():
        print(f"| {name} | {iou:.1f} |")
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
