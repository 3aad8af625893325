"""What readers see of a tar: names, sizes, and the metadata that they ask for."""

import pytest
from pipeline_toys import write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers._tar import members

FILES = {"./a/x.json": b'{"n": 1}', "a/x.wav": bytes(70_000), "a/y.json": b"", "a/y.wav": b"12"}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_names_and_sizes_in_order_and_only_the_content_asked_for(tmp_path, name):
    path = write_tar(tmp_path / name, FILES)
    found = list(members(path, lambda member: member.endswith(".json")))
    assert found == [
        (n.removeprefix("./"), len(data), data if n.endswith(".json") else None)
        for n, data in FILES.items()
    ]
    assert [content for _, _, content in members(path)] == [None] * 4


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_cut_archive_is_an_error_that_names_it(tmp_path, name):
    path = write_tar(tmp_path / name, FILES)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    found = []
    with pytest.raises(UserError, match=rf"{name}: the archive .*leave it out of --input"):
        for member in members(path):
            found.append(member)
    assert found[0] == ("a/x.json", 8, None)


def test_what_is_no_archive_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"no\.tar: there is no such archive"):
        list(members(tmp_path / "no.tar"))
    for name, content in (("a.tar", b"sound " * 200), ("b.tar.gz", b"sound"), ("c.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*fetch it again"):
            list(members(tmp_path / name))
