import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

from jobs.flags import flags_of
from ovss_core.errors import ConfigError
from pipelines.run.options import SourceOptions
from pipelines.sources.kinds import SOURCE_KINDS, SourceKind, kind_for
from pipelines.sources.kinds.base import offering, place
from pipelines.sources.kinds.images import ImageFiles
from tests.conftest import encode_image

USE = """
import sys
from importlib import util
from pathlib import Path

import pipelines.sources

# the folder of kinds, with one file more
spec = util.find_spec("pipelines.sources.kinds")
spec.submodule_search_locations.append(sys.argv[2])
kinds = util.module_from_spec(spec)
sys.modules["pipelines.sources.kinds"] = kinds
spec.loader.exec_module(kinds)
assert [kind.__name__ for kind in kinds.SOURCE_KINDS][-1] == "ZipArchives"

from jobs import label
from jobs.arguments import parse_with_protocol, take_fields
from pipelines.run.options import SourceOptions

heavy = [name for name in ("torch", "ray", "pyarrow") if name in sys.modules]
assert not heavy, heavy
folder = Path(sys.argv[1])
page = label.build_parser().format_help()
assert "  --zip FILE " in page.partition("which images are read")[0]
assert "--zip-folder NAME" in page.partition("which images are read")[2].partition("the run:")[0]

def options(*words):
    values, _ = parse_with_protocol(label.build_parser(), [*words, "--vocabulary", "cat,dog", "--output", "out"])
    return take_fields(values, SourceOptions)

(folder / "run.yaml").write_text(f"zip: {folder}/photos.zip\\nzip_folder: in/")
chosen = options("--config", str(folder / "run.yaml"))
assert chosen == options("--zip", f"{folder}/photos.zip", "--zip-folder=in/")

def refused(message, *words):
    from ovss_core.errors import OvssError
    try:
        next(iter(options(*words).open().records()))
    except OvssError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")

refused("exactly one of --images, --parquet, --webdataset and --zip; got images, zip", "--images", "a", "--zip", "b")
refused("--zip-folder goes with --zip", "--images", "a", "--zip-folder", "in")
refused("--zip is given twice", "--zip", "a", "--zip", "b")
refused("photos.zip is a zip archive: give it as --zip", "--images", f"{folder}/photos.zip")
refused("zip archives are given with --zip", "--images", str(folder))

from pipelines.preflight import require_apart
from ovss_core.errors import ConfigError
try:
    require_apart(chosen.kind.places(), f"{folder}/photos.zip")
except ConfigError as error:
    assert "--output" in str(error) and "--zip" in str(error), error
else:
    raise AssertionError("an output in the place of the input")

from tests.pipelines.mean_color import mean_job
from tests.pipelines.plain_execution import rows_of, run_plain
job = mean_job(str(folder / "out"), chosen.open())
run_plain(job)
print(sorted(row["image_id"] for row in rows_of(job.output, "means")),
      [(row["image_id"], row["error_type"]) for row in rows_of(job.output, "_failures")])
"""


def test_a_source_is_one_file_from_its_flag_to_its_rows(tmp_path: Path) -> None:
    (tmp_path / "kinds").mkdir()
    source = Path(__file__).with_name("added_source.py").read_text()
    (tmp_path / "kinds" / "zip_archives.py").write_text(source)
    (tmp_path / "data").mkdir()
    with ZipFile(tmp_path / "data" / "photos.zip", "w") as archive:
        for name, data in (("in/a.png", encode_image(1)), ("in/b.png", b"no image"), ("c.png", b"")):
            archive.writestr(name, data)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "data"), str(tmp_path / "kinds")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['in/a.png'] [('in/b.png', 'ImageError')]\n"


def test_every_kind_brings_its_place_first_and_a_text_for_each_flag() -> None:
    texts = {flag.dest: flag.meaning for flag in flags_of(SourceOptions, "")}
    for kind in SOURCE_KINDS:
        assert kind(**{kind.names()[0]: "x"}).places() == {kind.flags()[0]: "x"}
        assert all(texts[name] for name in kind.names())


def test_options_know_which_kind_was_given() -> None:
    options = SourceOptions(images="photos")
    assert (options.kind, options.place) == (ImageFiles("photos"), "photos")
    with pytest.raises(ConfigError, match="--image-column and --id-column go with --parquet; leave them out"):
        SourceOptions(images="photos", id_column="x")


def test_kinds_that_share_a_setting_are_a_mistake() -> None:
    @dataclass(frozen=True)
    class Other(SourceKind):
        images: str | None = place()

    with pytest.raises(TypeError, match="share a setting"):
        offering([ImageFiles, Other])(type("Options", (), {}))


def test_names_of_files_say_which_kind_takes_them() -> None:
    assert kind_for("s3://b/A.TAR.gz") == ("tar archive", "--webdataset")
    assert kind_for("a.pq") == ("Parquet table", "--parquet")
    assert kind_for("a.jpg") is None
