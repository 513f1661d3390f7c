from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.channels import main
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, WindowConfig
from ovss_core.errors import ConfigError, ImageError
from pipelines.channel_options import ChannelOptions
from pipelines.channels import measure_channels
from pipelines.run.options import SourceOptions
from tests.tiny import NAME, enliven, random_picture, register_tiny_models

WINDOWS = WindowConfig(size=32, stride=16, short_side=48, long_side=160)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(random_picture(60, 70, number)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def _planted(folder: Path, channel: int) -> ModelConfig:
    """Save a tiny tower whose patches all get a large value in one channel, from the second block on."""
    register_tiny_models()
    model = load_clip(ModelConfig(NAME, "random")).model
    enliven(model.visual, 0)
    with torch.no_grad():
        model.visual.transformer.resblocks[1].mlp.c_proj.bias[channel] += 60
    torch.save(model.state_dict(), folder / "planted.pt")
    return ModelConfig(NAME, str(folder / "planted.pt"))


def test_a_planted_channel_is_found_with_its_share_by_block(tmp_path: Path, pictures: Path) -> None:
    model = _planted(tmp_path, 11)
    counts = measure_channels(SourceOptions(images=str(pictures)), model, ChannelOptions(), WINDOWS)
    assert counts.images == 3
    assert counts.channels == [11]
    assert counts.dominated[:, 11].tolist() == [0, counts.patches, counts.patches, counts.patches]
    assert counts.rates[11] == 0.75
    lines = list(counts.lines())
    assert lines[-1] == "--rfclip.channels [11]"
    assert lines[4].startswith("| 11 | 75.00 % |")
    assert lines[4].endswith("| 0.0 100.0 100.0 100.0 % |")


def test_the_shares_are_those_of_the_definition(tmp_path: Path, pictures: Path) -> None:
    model, options = _planted(tmp_path, 3), ChannelOptions(count=1, threshold=2.0)
    (pictures / "broken.png").unlink()
    counts = measure_channels(SourceOptions(images=str(pictures)), model, options, WINDOWS)
    assert counts.images == 1
    assert counts.dominated.shape == (4, 32)
    assert (counts.dominated <= counts.patches).all()
    assert (counts.largest <= 32).all()
    assert ((counts.largest > 2) == (counts.dominated.sum(0) > 0)).all()


def test_a_pattern_without_a_readable_picture_is_an_error(pictures: Path) -> None:
    register_tiny_models()
    with pytest.raises(ImageError, match="no image could be read"):
        measure_channels(
            SourceOptions(images=str(pictures / "broken.png")),
            ModelConfig(NAME, "random"),
            ChannelOptions(),
            WINDOWS,
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "--count is 0; give at least 1"),
        ({"threshold": 0.0}, r"--threshold is 0\.0; give a number above 0"),
        ({"least": 1.5}, r"--least is 1\.5; give a share above 0, up to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChannelOptions(**values)  # type: ignore[arg-type]


def test_the_command_finds_none_in_the_demonstration_model(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--images", str(pictures), "--model", "demo", "--count", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("no channel dominates 0.1 % of the patches: --rfclip.channels []")
