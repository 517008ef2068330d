"""Files appear whole or not at all."""

import pytest

from lazysi.files import check_writable, load_document, save_document, whole_file


def test_a_finished_block_leaves_the_file_alone_in_its_directory(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with whole_file(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def fail() -> None:
        with whole_file(target) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_files_are_readable_by_others_as_the_umask_says(tmp_path):
    ordinary, whole = tmp_path / "ordinary", tmp_path / "whole"
    ordinary.write_text("")
    with whole_file(whole) as part:
        part.write_text("")
    assert whole.stat().st_mode == ordinary.stat().st_mode


def test_check_writable_names_the_suffix_or_the_directory(tmp_path):
    assert check_writable(tmp_path / "a.PNG", (".png",)) == tmp_path / "a.PNG"
    with pytest.raises(ValueError, match=r"expected a file name ending in \.png or \.npz, got .*a\.txt"):
        check_writable(tmp_path / "a.txt", (".png", ".npz"))
    with pytest.raises(ValueError, match=r"expected an existing directory to write a\.png to, got .*missing"):
        check_writable(tmp_path / "missing" / "a.png", (".png",))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ValueError, match="expected a path that can be written"):
        check_writable(tmp_path / "b.png", (".png",))


def test_a_document_says_what_it_is(tmp_path):
    save_document(tmp_path / "a.json", "number", {"value": 1.5})
    assert load_document(tmp_path / "a.json", "a number", "letter", "number")["value"] == 1.5
    with pytest.raises(ValueError, match="expected a file of kind 'letter', version 1, got"):
        load_document(tmp_path / "a.json", "a letter", "letter")
    with pytest.raises(ValueError, match="expected a letter in JSON, got"):
        load_document(tmp_path / "missing.json", "a letter", "letter")
