"""Images in batches: decoded in order, tokens expanded, and one black image where ZeRO needs it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from synthetic import PLACEHOLDER, ids_of, make_dataset, make_image, make_recipe, number_of
from torch.utils.data import DataLoader

from shardkit.errors import BadInput, IdentityMismatch, UsageError
from shardkit.images.transform import ImageTransform
from shardkit.integrations.deepspeed import SequenceRows
from shardkit.loader import ShardDataset, ShardLoader
from shardkit.loader.collate import Padding, RawBatch, make_batch
from shardkit.loader.images import ImageStage

N_IMAGES = {0: 1, 2: 2, 3: 1, 7: 3, 10: 1}
TOKEN = 30_000


def to_pixels(image: Image.Image) -> NDArray[np.float32]:
    """A transform: the picture as it is, 0 to 1."""
    return np.asarray(image, np.float32).transpose(2, 0, 1)[:, :8, :12] / np.float32(255)


def colour(k: int, j: int) -> list[float]:
    """The colour of image j of sample k."""
    with Image.open(io.BytesIO(make_image(k * 10 + j).data)) as image:
        return [value / 255 for value in image.convert("RGB").getpixel((0, 0))]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 samples, 8 images."""
    path = tmp_path_factory.mktemp("images")
    make_dataset(path, [7, 5], n_images=N_IMAGES)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed."""
    path = tmp_path_factory.mktemp("packed")
    make_dataset(path, [7, 5], n_images=N_IMAGES, packed=True)
    return path


def loader_of(path: Path, batch_size: int, **options: Any) -> ShardLoader:
    """A loader of one rank in file order, unless told otherwise."""
    options = {"rank": 0, "world_size": 1, "shuffle": False} | options
    return ShardLoader(path, batch_size, **options)


def check_pixels(batch: dict[str, Any]) -> int:
    """Every image is that of its row, in reading order; returns how many there are."""
    numbers = [number_of(row) for row in batch["input_ids"].tolist()]
    expected = [
        (row, colour(k, j)) for row, k in enumerate(numbers) for j in range(N_IMAGES.get(k, 0))
    ]
    if not expected:
        assert "pixel_values" not in batch
        return 0
    assert batch["image_rows"].tolist() == [row for row, _ in expected]
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].shape == (len(expected), 3, 8, 12)
    found = batch["pixel_values"][:, :, 0, 0].tolist()
    assert np.allclose(found, [value for _, value in expected], atol=1e-6)
    return len(expected)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_pixels_belong_to_their_rows(dataset: Path, n_workers: int, shuffle: bool) -> None:
    """Each image once, at the row of its sample; batches without images have no pixels."""
    loader = loader_of(
        dataset, 3, image_transform=to_pixels, num_workers=n_workers, shuffle=shuffle
    )
    assert sum(check_pixels(batch) for batch in loader) == 8


def test_encoded_images_without_a_transform(dataset: Path) -> None:
    """The bytes as they were packed, and their rows."""
    batch = next(iter(loader_of(dataset, 4)))

    assert batch["images"] == [make_image(n).data for n in (0, 20, 21, 30)]
    assert batch["image_rows"].tolist() == [0, 2, 2, 3]


def test_under_a_plain_data_loader(dataset: Path) -> None:
    """The same through ShardDataset and its collate, with and without workers."""
    for n_workers in (0, 2):
        samples = ShardDataset(
            dataset, rank=0, world_size=1, image_transform=to_pixels, shuffle=False
        )
        loader = DataLoader(
            samples, batch_size=3, num_workers=n_workers, collate_fn=samples.collate
        )
        assert sum(check_pixels(batch) for batch in loader) == 8


def test_tokens_are_expanded(dataset: Path) -> None:
    """N image tokens for each placeholder, labels -100, everything else as it was."""
    loader = loader_of(dataset, 12, expand_image_tokens=4, image_token_id=TOKEN)
    batch = next(iter(loader))
    for row, (ids, labels) in enumerate(
        zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    ):
        plain = ids_of(row).tolist()
        expected = plain[:2] + [TOKEN] * 4 * N_IMAGES.get(row, 0) + plain[2:]
        assert ids[: len(expected)] == expected
        assert [label for i, label in zip(ids, labels, strict=True) if i == TOKEN] == (
            [-100] * 4 * N_IMAGES.get(row, 0)
        )
        assert int(batch["attention_mask"][row].sum()) == len(expected)


def test_expanding_a_pack_moves_its_positions() -> None:
    """Positions run through the image tokens and still restart in every document."""
    row = np.array([[5, -200, 6, 7, -200], [5, -100, 6, 7, -100]], np.int32)
    leading = np.array([[-200, 6, -200], [-100, 6, -100]], np.int32)
    raw = RawBatch(
        rows=[row.ravel().data, leading.ravel().data],
        documents=[np.array([3, 2]), np.array([2, 1])],
        image_rows=np.array([0, 0, 1, 1]),
    )

    ImageStage(n_tokens=3, token_id=99).expand(raw)
    batch = make_batch(raw, Padding(0))

    assert batch["input_ids"].tolist() == [
        [5, 99, 99, 99, 6, 7, 99, 99, 99],
        [99, 99, 99, 6, 99, 99, 99, 0, 0],
    ]
    assert batch["labels"][0].tolist() == [-100, -100, -100, -100, 6, -100, -100, -100, -100]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 0, 1, 2, 3],
        [0, 1, 2, 3, 0, 1, 2, 0, 1],
    ]
    assert batch["cu_seqlens"].tolist() == [0, 5, 9, 13, 16, 18]


def test_one_black_image_where_there_is_none(dataset: Path) -> None:
    """Every batch has an image; the added tokens are masked, unlabelled, at a row's end."""
    plain = list(loader_of(dataset, 2))
    loader = loader_of(
        dataset,
        2,
        image_transform=lambda image: to_pixels(image.resize((12, 8))),
        expand_image_tokens=4,
        image_token_id=TOKEN,
        image_pad="always-one",
    )
    n_added = 0
    for batch, before in zip(loader, plain, strict=True):
        assert len(batch["pixel_values"]) == len(batch["image_rows"])
        n_tokens = int((batch["input_ids"] == TOKEN).sum())
        assert n_tokens == 4 * len(batch["pixel_values"])
        if "image_rows" in before:
            continue
        n_added += 1
        assert batch["pixel_values"].abs().sum() == 0
        lengths = before["attention_mask"].sum(dim=1)
        row = int(lengths.argmin())
        assert batch["image_rows"].tolist() == [row]
        assert torch.equal(batch["attention_mask"].sum(dim=1), lengths)
        begin = int(lengths[row])
        assert batch["input_ids"][row, begin : begin + 4].tolist() == [TOKEN] * 4
        assert batch["labels"].ne(-100).sum() == before["labels"].ne(-100).sum()
    assert n_added == 2


def test_a_black_image_in_a_pack_is_a_document_of_its_own(packed: Path) -> None:
    """Its positions begin at 0, so nothing attends to it."""
    loader = loader_of(packed, 1, image_pad="always-one")
    batches = list(loader)
    batch = batches[1]

    assert batch["input_ids"][0, -1] == PLACEHOLDER
    assert batch["position_ids"][0, -1] == 0
    assert batch["labels"][0, -1] == -100
    assert batch["cu_seqlens"][-2:].diff().item() == 1
    assert len(batch["images"]) == 1
    assert all(len(batch["images"]) >= 1 for batch in batches)


def test_a_black_image_in_a_batch_of_padding(dataset: Path) -> None:
    """A rank that has only padding rows still has an image, and still counts its rows."""
    loader = loader_of(dataset, 7, rank=1, world_size=2, drop_last=False, image_pad="always-one")
    batch = next(iter(loader))
    assert (batch["n_padding_rows"], len(batch["input_ids"])) == (2, 7)
    loader = loader_of(dataset, 12, rank=1, world_size=2, drop_last=False, image_pad="always-one")
    batch = next(iter(loader))
    assert (batch["n_padding_rows"], len(batch["input_ids"])) == (12, 12)
    assert batch["input_ids"][0].tolist() == [0, PLACEHOLDER]
    assert batch["attention_mask"].tolist() == [[1, 0]] * 12
    assert batch["labels"].eq(-100).all()


def test_one_image_a_row(tmp_path: Path) -> None:
    """XTuner's layout: zeros for a text-only row; two images in a row are refused."""
    make_dataset(tmp_path, [4], n_images={1: 1, 3: 1})
    loader = loader_of(tmp_path, 2, image_transform=to_square, image_layout="row")
    for step, batch in enumerate(loader):
        assert batch["pixel_values"].shape == (2, 3, 8, 8)
        assert batch["pixel_values"][0].abs().sum() == 0
        assert batch["pixel_values"][1, :, 0, 0].tolist() == pytest.approx(colour(2 * step + 1, 0))
        assert batch["image_rows"].tolist() == [0, 1]
    make_dataset(tmp_path / "two", [4], n_images={1: 2})
    with pytest.raises(UsageError, match="more than one image"):
        list(loader_of(tmp_path / "two", 2, image_transform=to_square, image_layout="row"))


def to_square(image: Image.Image) -> torch.Tensor:
    """A transform that returns a tensor."""
    return torch.from_numpy(to_pixels(image.resize((12, 8)))[:, :, :8].copy())


class Processor:
    """What a transformers image processor looks like from outside."""

    def preprocess(self) -> None:
        """Only its being there matters."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, Any]:
        assert return_tensors == "np"
        return {"pixel_values": [to_pixels(image) for image in images]}


def test_a_processor(dataset: Path) -> None:
    """A transformers image processor is called the way it wants."""
    loader = loader_of(dataset, 3, image_transform=Processor())
    assert sum(check_pixels(batch) for batch in loader) == 8


class PatchProcessor(Processor):
    """As Qwen2-VL's: patches in rows, and a grid that says what they are."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, Any]:
        return {"pixel_values": np.zeros((32, 1176)), "image_grid_thw": np.array([[1, 4, 8]])}


class TileProcessor(Processor):
    """As LLaVA-NeXT's: several tiles of one picture."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, Any]:
        return {"pixel_values": np.zeros((1, 5, 3, 8, 8))}


@pytest.mark.parametrize(
    ("transform", "shapes"),
    [
        (PatchProcessor(), r"pixel_values \(32, 1176\), image_grid_thw \(1, 3\)"),
        (TileProcessor(), r"pixel_values \(1, 5, 3, 8, 8\)"),
        (lambda image: np.asarray(image), r"pixels \(64, 64, 3\)"),
    ],
)
def test_outputs_that_are_no_picture_are_refused(
    dataset: Path, transform: object, shapes: str
) -> None:
    """Nothing of what a processor makes is dropped in silence."""
    with pytest.raises(UsageError, match=shapes):
        next(iter(loader_of(dataset, 3, image_transform=transform)))


def test_our_transform(dataset: Path) -> None:
    """ImageTransform takes the encoded bytes; the pixels are those that it gives alone."""
    transform = ImageTransform(16)
    for batch in loader_of(dataset, 4, image_transform=transform):
        numbers = [number_of(row) for row in batch["input_ids"].tolist()]
        data = [make_image(k * 10 + j).data for k in numbers for j in range(N_IMAGES.get(k, 0))]
        assert np.array_equal(batch["pixel_values"].numpy(), transform(data))


def test_pixels_of_different_shapes_stay_a_list(tmp_path: Path) -> None:
    """A transform that keeps the size of each picture gives a list, in reading order."""
    make_dataset(tmp_path, [3], n_images={0: 1, 2: 2})
    sizes = iter([(4, 4), (5, 4), (6, 4), (7, 4)])

    def odd(image: Image.Image) -> NDArray[np.float32]:
        return to_pixels(image.resize(next(sizes)))

    batch = next(iter(loader_of(tmp_path, 3, image_transform=odd, image_threads=1)))
    assert [tuple(pixels.shape) for pixels in batch["pixel_values"]] == [
        (3, 4, 5),
        (3, 4, 6),
        (3, 4, 7),
    ]


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """An error of ours that names the sample, through workers too."""
    from shardkit.images.decode import BadImage

    def broken(image: Image.Image) -> NDArray[np.float32]:
        if image.size != (64, 64):
            raise BadImage("no picture")
        return np.zeros((3, 4, 4), np.float32)

    make_dataset(tmp_path, [3], n_images={2: 1})
    for n_workers in (0, 1):
        loader = loader_of(tmp_path, 3, image_transform=broken, num_workers=n_workers)
        with pytest.raises(BadInput, match=r"shard-00000\.tar, sample 00000002 .rows\.json row 2"):
            next(iter(loader))


def test_settings_that_do_not_fit_are_refused(dataset: Path) -> None:
    """No id for the image tokens; another number of them than was counted when packing."""
    with pytest.raises(UsageError, match="image_token_id"):
        loader_of(dataset, 2, expand_image_tokens=4)
    with pytest.raises(IdentityMismatch, match=r"4 .--image-tokens.*found expand_image_tokens=9"):
        loader_of(dataset, 2, expand_image_tokens=9, image_token_id=TOKEN)


def test_the_stored_image_token_is_used(tmp_path: Path) -> None:
    """Packed with --image-token, expanding needs no id."""
    images = dict(make_recipe(images=True)["images"]) | {"image_token": TOKEN}
    make_dataset(tmp_path, [2], recipe=make_recipe(images=True, **{}) | {"images": images})
    stage = loader_of(tmp_path, 1, expand_image_tokens=4).dataset.stage
    assert isinstance(stage, ImageStage)
    assert stage.token_id == TOKEN


def test_options_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    """Nothing expands without a count, nothing has a row without pixels; and no adapter drops
    pictures."""
    make_dataset(tmp_path, [4], n_images={1: 1})
    with pytest.raises(UsageError, match="without expand_image_tokens"):
        loader_of(tmp_path, 2, image_token_id=7)
    with pytest.raises(UsageError, match="without image_transform"):
        loader_of(tmp_path, 2, image_layout="row")
    with pytest.raises(UsageError, match="trained on blind"):
        SequenceRows(loader_of(tmp_path, 2))
