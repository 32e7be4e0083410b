"""GGUF metadata: read as its library reads it, from any bytes, and the licence in it found."""

from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import ModelError
from limbeck.gguf_metadata import gguf_general
from limbeck.licences import Licence, of_model


def said(found: list[Licence]) -> list[tuple[str, str]]:
    return [(each.name, each.permits) for each in found]


def gguf_file(path: Path, add=lambda writer: None) -> str:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "a", "ö"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_block_count(2)
    add(writer)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return str(path)


def test_a_gguf_file_by_its_metadata(tmp_path) -> None:
    found = of_model(gguf_file(tmp_path / "named.gguf", lambda writer: writer.add_license("llama2,mit")))  # as llama.cpp joins several
    assert said(found) == [("llama2", "no"), ("mit", "yes")]
    assert found[0].source == "GGUF metadata"

    def other(writer) -> None:
        writer.add_license("other")
        writer.add_license_name("qwen")
        writer.add_license_link("https://example.com/qwen")

    (found,) = of_model(gguf_file(tmp_path / "other.gguf", other))
    assert (found.name, found.permits, found.url) == ("qwen", "yes", "https://example.com/qwen")


def test_a_gguf_file_that_names_none_takes_the_card_beside_it(tmp_path) -> None:
    plain = gguf_file(tmp_path / "plain.gguf")
    assert said(of_model(plain)) == [(f"unknown licence of {plain}", "unknown")]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert said(of_model(plain)) == [("mit", "yes")]


def test_gguf_metadata_reads_as_its_library_reads_it(tmp_path) -> None:
    path = Path(gguf_file(tmp_path / "a.gguf", lambda writer: (writer.add_license("mit"), writer.add_name("Größe"))))
    reader = gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if key.startswith("general.")}
    assert {f"general.{key}": value for key, value in gguf_general(path).items()} == theirs
    reader.data._mmap.close()


def test_every_cut_of_a_gguf_file_is_one_line(tmp_path) -> None:
    whole = Path(gguf_file(tmp_path / "whole.gguf", lambda writer: writer.add_license("mit"))).read_bytes()
    end = whole.index(b"mit") + 3
    for length in range(end):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf is cut short or no GGUF file"):
            of_model(str(tmp_path / "cut.gguf"))


@given(junk=st.binary(max_size=64))
def test_any_bytes_after_a_gguf_head_are_metadata_or_one_line(junk: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (2).to_bytes(8, "little") + junk)
    try:
        gguf_general(path)
    except ModelError as error:
        assert "\n" not in str(error)
