from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.evaluation.nets.images import FolderImages, Preparation, open_images

from .conftest import pictures


def test_pixels_become_scaled_channels_first(tmp_path: Path) -> None:
    images = pictures(10)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(10, dtype=np.uint8))
    ways = Preparation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), batch=4)
    opened = open_images(tmp_path / "a.npz", ways, inputs="x", labels="y")
    made = list(opened)
    assert [len(labels) for _, labels in made] == [4, 4, 2]
    assert len(opened) == 10
    value = (images[5, 2, 3, 1] / 255 - 0.2) / 0.25
    assert made[1][0][1, 1, 2, 3].item() == pytest.approx(value, rel=1e-5)
    assert made[1][1].tolist() == [4, 5, 6, 7]
    assert len(opened.digest()) == 64


def test_channels_may_come_first_in_the_file(tmp_path: Path) -> None:
    images = pictures(3)
    np.savez(tmp_path / "a.npz", images=images.transpose(0, 3, 1, 2), labels=np.zeros(3, int))
    np.savez(tmp_path / "b.npz", images=images, labels=np.zeros(3, int))
    first, _ = next(iter(open_images(tmp_path / "a.npz", channels_first=True)))
    last, _ = next(iter(open_images(tmp_path / "b.npz")))
    assert bool((first == last).all())


def test_a_folder_of_class_folders_is_read_in_order_of_names(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="reading image files needs Pillow")
    for number, (name, file) in enumerate([("cat", "b.png"), ("cat", "a.png"), ("ant", "x.PNG")]):
        (tmp_path / name).mkdir(exist_ok=True)
        image.fromarray(pictures(1, seed=number)[0]).save(tmp_path / name / file)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    opened = open_images(tmp_path)
    assert isinstance(opened, FolderImages)
    assert opened.classes == ("ant", "cat")
    inputs, labels = next(iter(opened))
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(
        inputs[1].numpy(), pictures(1, seed=1)[0].transpose(2, 0, 1) / np.float32(255), atol=1e-7
    )
    smaller, _ = next(iter(open_images(tmp_path, Preparation(size=(4, 6)))))
    assert tuple(smaller.shape) == (3, 3, 4, 6)
    image.fromarray(pictures(1)[0][:5]).save(tmp_path / "cat" / "c.png")
    with pytest.raises(ShapeError, match="give the size they are resized to"):
        list(open_images(tmp_path))
    (tmp_path / "cat" / "c.png").write_bytes(b"broken")
    with pytest.raises(FormatError, match=r"c\.png: not an image that can be read"):
        list(open_images(tmp_path))


def test_files_that_are_not_there_or_not_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file or folder"):
        open_images(tmp_path / "absent.npz")
    with pytest.raises(MissingError, match="one subfolder for each class"):
        open_images(tmp_path)
    path = tmp_path / "a.npz"
    np.savez(path, images=pictures(2), other=np.zeros(2))
    with pytest.raises(FormatError, match="no array 'labels'; there are images, other"):
        open_images(path)
    np.savez(path, images=pictures(2), labels=np.zeros(3, int))
    with pytest.raises(ShapeError, match=r"got \(2, 8, 8, 3\) and int64 \(3,\)"):
        open_images(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match="plain arrays"):
        open_images(path)
    np.savez(path, images=np.array([print], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(FormatError, match="plain arrays"):
        open_images(path)


def test_preparations_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="must not be 0"):
        Preparation(std=(1.0, 0.0, 1.0))
    np.savez(tmp_path / "a.npz", images=pictures(1)[..., :1], labels=np.zeros(1, int))
    with pytest.raises(ShapeError, match="1 channels, mean and std have 3 values"):
        list(open_images(tmp_path / "a.npz"))
