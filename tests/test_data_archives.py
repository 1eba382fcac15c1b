"""Files of a data set in folders and archives, whole and broken."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layouts import unpacked
from PIL import Image

from dilax.data.builders.archives import Archive, Tree, check_archive
from dilax.data.builders.builder import decoded

NOISE = np.random.default_rng(0).bytes(3000)
FILES = {
    "set/images/a.jpg": NOISE,
    "set/images/b.jpg": NOISE[::-1] * 3,
    "set/images/deep/c.png": b"",
    "set/lists/train.txt": "\ufeffa\r\n\r\n  b \n".encode(),
    "set/readme": b"\xff\xfe",
}


def tarred(files, mode="w", prefix=""):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        folder = tarfile.TarInfo(f"{prefix}set")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped(files, method=zipfile.ZIP_DEFLATED):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.mkdir("set")
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


FORMS = {
    "set.zip": zipped(FILES),
    "stored.zip": zipped(FILES, zipfile.ZIP_STORED),
    "set.tar": tarred(FILES),
    "dotted.tar": tarred(FILES, prefix="./"),
    "set.tar.gz": tarred(FILES, "w:gz"),
    "set.tgz": gzip.compress(tarred(FILES)),
}


@pytest.fixture(params=["folder", *FORMS])
def tree(request, tmp_path):
    """The same files in every form."""
    (scratch := tmp_path / "scratch").mkdir()
    if request.param == "folder":
        return Tree(unpacked(tmp_path / "source", FILES), scratch=scratch)
    (file := tmp_path / request.param).write_bytes(FORMS[request.param])
    return Tree(file, scratch=scratch)


def placed(tmp_path, **packed):
    """A folder of archives, and the scratch folder."""
    folder = unpacked(tmp_path / "source", packed)
    (scratch := tmp_path / "scratch").mkdir(exist_ok=True)
    return folder, scratch


def test_every_form_has_the_same_files(tree):
    assert tree.stems("", "") == sorted(FILES)
    for name, content in FILES.items():
        assert (tree.read(name), tree.size(name)) == (content, len(content))
    assert "set" not in tree and "set/" not in tree
    assert tree.lines("set/lists/train.txt") == ["a", "b"]
    with pytest.raises(ValueError, match="set/readme is not text"):
        tree.lines("set/readme")
    with pytest.raises(ValueError, match=r"set/images/z\.jpg is missing"):
        tree.read("set/images/z.jpg")


def test_stems_are_the_files_below_a_folder(tree):
    assert tree.stems("set/images/", "") == ["a.jpg", "b.jpg", "deep/c.png"]
    assert tree.stems("set/images/", ".jpg") == ["a", "b"]
    assert tree.stems("set/images/dee/", "") == tree.stems("images/", "") == []


def test_files_and_folders_are_found_wherever_they_are(tree):
    for name in ("set/readme", "readme"):
        assert tree.find(name) == "set/readme"
    assert tree.find("images/") == "set/images/"
    assert tree.find("deep/c.png") == "set/images/deep/c.png"
    assert tree.find("deep/") == "set/images/deep/"
    for name in ("mages/", "images", "a.jpg/", "eadme"):
        assert tree.find(name) is None


def test_the_shortest_of_several_paths_is_found(tmp_path):
    files = {f"{at}lists/a.txt": b"" for at in ("x/y/", "z/", "copy/of/z/")}
    tree = Tree(unpacked(tmp_path, files), scratch=tmp_path)
    assert tree.find("lists/") == "z/lists/"
    assert tree.find("lists/a.txt") == "z/lists/a.txt"


def test_eight_threads_read_the_same_bytes(tree):
    names = sorted(FILES) * 200
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(tree.read, names))
    assert contents == [FILES[name] for name in names]


def test_archives_in_a_folder_are_found_by_their_names(tmp_path):
    folder, scratch = placed(
        tmp_path,
        **{
            "down/one.zip": zipped({"a": b"1"}),
            "two.tgz": tarred({"b": b"2"}, "w:gz"),
            "other.zip": zipped({"c": b"3"}),
        },
    )
    tree = Tree(folder, [Archive("one.zip"), Archive("two.tgz")], scratch=scratch)
    assert (tree.read("a"), tree.read("b"), "c" in tree) == (b"1", b"2", False)
    assert str(tree) == f"{folder} (with one.zip, two.tgz)"


def test_unpacked_files_come_before_those_in_archives(tmp_path):
    folder, scratch = placed(
        tmp_path, **{"set.zip": zipped({"a": b"old"}), "a": b"new"}
    )
    tree = Tree(folder, [Archive("set.zip")], scratch=scratch)
    assert tree.read("a") == b"new"


def test_archives_of_one_name_do_not_overwrite_each_other(tmp_path):
    packed = {
        f"{at}/set.tgz": tarred({f"{at}.txt": at.encode() * 9}, "w:gz") for at in "xy"
    }
    folder, scratch = placed(tmp_path, **packed)
    tree = Tree(folder, [Archive("set.tgz")], scratch=scratch)
    assert (tree.read("x.txt"), tree.read("y.txt")) == (b"x" * 9, b"y" * 9)


@pytest.mark.parametrize("pack", [zipped, tarred, lambda f: tarred(f, "w:gz")])
def test_archives_in_archives_are_opened(tmp_path, pack):
    inner = {f"{part}/masks": pack({f"{part}.png": part.encode()}) for part in "pq"}
    folder, scratch = placed(tmp_path, **{"set.tar": tarred(inner)})
    tree = Tree(folder, [Archive("set.tar")], scratch=scratch)
    for name in inner:
        tree.add_inner(name)
    assert (tree.read("p.png"), tree.read("q.png")) == (b"p", b"q")


def test_a_tar_that_ends_with_a_zip_is_no_zip(tmp_path):
    (file := tmp_path / "set.tar").write_bytes(tarred({"in.zip": zipped({"a": b"1"})}))
    tree = Tree(file, scratch=tmp_path)
    assert tree.stems("", "") == ["in.zip"]


def test_an_inner_archive_that_is_none_is_named(tmp_path):
    tree = Tree(unpacked(tmp_path / "s", {"in.zip": b"PK\3\4"}), scratch=tmp_path)
    with pytest.raises(ValueError, match=r"in\.zip: is not a complete zip or tar"):
        tree.add_inner("in.zip")
    with pytest.raises(ValueError, match=r"no\.zip is missing"):
        tree.add_inner("no.zip")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.95])
def test_archives_that_are_cut_are_named(tmp_path, form, share):
    content = FORMS[form]
    if form.endswith(".tar"):  # what follows the last file is only padding
        content = content[: content.rindex(b"\xff\xfe") + 512]
    file = tmp_path / form
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=rf"{form}: is not a complete .* download it aga"
    ):
        Tree(file, scratch=tmp_path)


def test_a_tar_that_is_cut_between_two_files_is_named(tmp_path):
    content = tarred({"a": b"1", "b": b"2"})
    start = content.index(b"b" + bytes(99))
    (file := tmp_path / "set.tar").write_bytes(content[:start])
    with pytest.raises(ValueError, match=f"it breaks off at byte {start}"):
        Tree(file, scratch=tmp_path)
    file.write_bytes(content[:start] + b"\1" * 512 + content[start + 512 :])
    with pytest.raises(ValueError, match=f"it breaks off at byte {start}"):
        Tree(file, scratch=tmp_path)


@pytest.mark.parametrize("form", ["set.zip", "stored.zip"])
def test_a_damaged_member_is_named(tmp_path, form):
    content = bytearray(FORMS[form])
    start = content.index(NOISE[:20]) if form == "stored.zip" else 150
    content[start : start + 9] = b"\xaa" * 9
    (file := tmp_path / form).write_bytes(content)
    tree = Tree(file, scratch=tmp_path)
    with pytest.raises(ValueError, match=r"set/images/a\.jpg is damaged"):
        tree.read("set/images/a.jpg")


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_archives_that_unpack_to_far_too_much_are_refused(tmp_path, form):
    content = {"a.png": bytes(1 << 27)}  # 128 MiB in 128 kB
    packed = zipped(content) if form == "zip" else gzip.compress(tarred(content))
    path = tmp_path / f"a.{form}"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=rf"{path}: .*unpacks to far"):
        Tree(path, scratch=tmp_path)


def test_files_larger_than_any_of_a_data_set_are_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=r"a.png has 1073741824 bytes"):
        Tree(tmp_path, scratch=tmp_path).read("a.png")
    wide = Image.new("1", (5000, 5000))
    wide.save(file := io.BytesIO(), "png")
    with pytest.raises(ValueError, match=r"wide.png: .*5000x5000 pixels"):
        decoded(file.getvalue(), "wide.png")


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder"):
        Tree(tmp_path / "nowhere", scratch=tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    folder = unpacked(tmp_path / "s", {"a/x": b"1", "b/y": b"2"})
    os.symlink(folder / "b", folder / "a/to_b")
    os.symlink(folder / "a", folder / "b/to_a")
    os.symlink(folder / "nothing", folder / "a/dangling")
    tree = Tree(folder, scratch=tmp_path)
    expected = ["a/to_b/to_a/x", "a/to_b/y", "a/x"]
    swapped = ["b/to_a/to_b/y", "b/to_a/x", "b/y"]
    assert set(tree.stems("", "")) <= {*expected, *swapped}
    assert {"a/to_b/y", "a/x", "b/to_a/x", "b/y"} <= set(tree.stems("", ""))


def test_members_of_hostile_archives_stay_in_them(tmp_path):
    """Names that lead out of the archive are only names, and links are not files."""
    (scratch := tmp_path / "scratch").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    names = ("../evil", "/evil", "a/../../evil")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret")
            tar.addfile(member)
    (tmp_path / "set.tgz").write_bytes(packed.getvalue())
    (tmp_path / "set.zip").write_bytes(zipped(dict.fromkeys(names, b"evil")))
    for file in ("set.tgz", "set.zip"):
        tree = Tree(tmp_path / file, scratch=scratch)
        assert {tree.read(name) for name in tree.stems("", "")} == {b"evil"}
        with pytest.raises(ValueError, match="soft is missing"):
            tree.read("soft")
    inner = unpacked(tmp_path / "s", {"in.zip": zipped({"../evil": b"evil"})})
    outer = Tree(inner, scratch=scratch)
    outer.add_inner("in.zip")
    assert outer.read("../evil") == b"evil"
    assert not list(tmp_path.rglob("evil"))
    assert {path.suffix for path in scratch.iterdir()} == {".tar", ".zip"}


@pytest.mark.parametrize(
    "published, difference",
    [
        ({}, None),
        ({"size": len(FORMS["set.tar"])}, None),
        ({"digest": hashlib.md5(FORMS["set.tar"]).hexdigest()}, None),
        ({"digest": hashlib.sha256(FORMS["set.tar"]).hexdigest()}, None),
        ({"size": 7}, f"has {len(FORMS['set.tar'])} bytes, not the published 7"),
        ({"digest": "0" * 32}, "its checksum differs"),
        ({"digest": "0" * 64}, "its checksum differs"),
    ],
)
def test_archives_are_compared_with_what_is_published(tmp_path, published, difference):
    folder, scratch = placed(tmp_path, **{"set.tar": FORMS["set.tar"]})
    archive = Archive("set.tar", **published)
    if difference is None:
        check_archive(folder / "set.tar", archive)
        assert Tree(folder, [archive], scratch=scratch).stems("set/lists/", "")
    else:
        for source in (folder, folder / "set.tar"):
            with pytest.raises(
                ValueError, match=rf"set\.tar: {difference}.*--unverified"
            ):
                Tree(source, [archive], scratch=scratch)
        tree = Tree(folder, [archive], scratch=scratch, verify=False)
        assert tree.read("set/images/a.jpg") == NOISE
