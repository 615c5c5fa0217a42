"""What a node keeps of images from one cluster to the next, and what it drops."""

import hashlib
import os
import tarfile

import pytest

from harness import network, scratch_images
from harness.commands import run
from harness.containerd import runtime
from harness.scratch_images import PAUSE_IMAGE


@pytest.fixture
def node(tmp_path):
    """A containerd of its own."""
    plugins = network.plugin_configuration(tmp_path / "network")
    found = runtime(tmp_path / "content", tmp_path / "state", plugins, PAUSE_IMAGE)
    found.start()
    yield found
    found.program.stop()


@pytest.fixture
def image(tmp_path):
    """Make an image that holds one file."""

    def make(reference, content):
        programs = {"one": content}
        return scratch_images._made(tmp_path, reference, ["/one"], programs)

    return make


def blobs(node):
    return set(run(*node._ctr("content", "ls", "-q")).split())


def names(node):
    return {name for name in node.images() if not name.startswith("sha256:")}


def layer(image):
    with tarfile.open(image.archive) as archive:
        return f"sha256:{hashlib.sha256(archive.extractfile('layer.tar').read()).hexdigest()}"


def test_images_are_imported_once_and_older_ones_dropped(node, image):
    said = []
    first, other = image("finetune.local/a:1", b"first"), image("finetune.local/b:1", b"other")
    node.bring([first, other], said.append)
    assert names(node) == {"finetune.local/a:1", "finetune.local/b:1"}
    assert len(said) == 2
    kept = blobs(node)

    node.bring([first], said.append)
    assert len(said) == 2  # it was there
    assert {layer(first), layer(other)} <= blobs(node)  # and what was not asked for stays

    second = image("finetune.local/a:2", b"second")
    node.bring([second], said.append, keep=True)
    assert names(node) == {"finetune.local/a:1", "finetune.local/a:2", "finetune.local/b:1"}

    node.bring([second], said.append)
    assert names(node) == {"finetune.local/a:2", "finetune.local/b:1"}
    assert len(said) == 3
    digests = {digest for name, digest in node.images().items() if name.startswith("sha256:")}
    assert digests <= {digest for name, digest in node.images().items() if name in names(node)}
    assert layer(first) in kept
    assert layer(first) not in blobs(node)
    assert {layer(second), layer(other)} <= blobs(node)


def test_an_archive_that_was_written_again_is_imported_again(node, image):
    one = image("finetune.local/a:1", b"one")
    node.bring([one], lambda text: None)
    before = node.images()["finetune.local/a:1"]
    two = image("finetune.local/a:1", b"two")
    one.archive.write_bytes(two.archive.read_bytes())
    os.utime(one.archive, (1, 1))
    node.bring([one], lambda text: None)

    assert node.images()["finetune.local/a:1"] != before


def test_an_archive_of_another_image_is_refused(node, image):
    one = image("finetune.local/a:1", b"one")
    wrong = scratch_images.ScratchImage("finetune.local/c:1", one.archive)
    with pytest.raises(RuntimeError, match=r"does not hold finetune\.local/c:1"):
        node.bring([wrong], lambda text: None)
