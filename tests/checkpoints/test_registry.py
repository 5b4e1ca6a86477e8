import subprocess
import sys

import pytest

from beats_trainer import get_model_info, list_available_models
from beats_trainer.errors import UnknownCheckpointError


def test_the_documents_five_names_come_first_and_in_its_order():
    names = list(list_available_models())

    assert names[:5] == [
        "BEATs_iter3_plus_AS2M",
        "openbeats",
        "openbeats_i1",
        "openbeats_i2",
        "openbeats_i3",
    ]


def test_the_whole_microsoft_family_and_openbeats_large_have_names():
    names = set(list_available_models())
    stages = ["iter1", "iter2", "iter3", "iter3_plus_AS20K", "iter3_plus_AS2M"]

    assert {f"BEATs_{stage}" for stage in stages} <= names
    assert {f"BEATs_{s}_finetuned_on_AS2M_cpt{n}" for s in stages for n in (1, 2)} <= names
    assert {f"Tokenizer_{stage}" for stage in stages[1:]} <= names
    assert {f"openbeats_large_i{n}" for n in (1, 2, 3)} <= names


@pytest.mark.parametrize("name", list_available_models())
def test_a_record_says_source_file_size_licence_and_paper(name):
    record = get_model_info(name)

    assert record == list_available_models()[name]
    assert isinstance(record["size_mb"], int | float)
    assert record["size_mb"] > (1 if record.get("bundled") else 300)
    assert record["kind"] in ("encoder", "classifier", "tokenizer")
    assert record["repo_type"] in ("model", "dataset", None)
    assert (record["repo_type"] is None) == (record["hf_repo"] is None)
    for field in ("filename", "description", "licence", "paper", "how_to_get"):
        assert record[field]
    assert record["filename"] in record["how_to_get"]
    assert record["sha256"] is None or len(record["sha256"]) == 64
    assert (record["num_classes"] == 527) == (record["kind"] == "classifier")


def test_two_names_share_a_file_only_where_they_are_the_same_checkpoint():
    files = {}
    for name, record in list_available_models().items():
        files.setdefault(record["filename"], []).append(name)

    assert [names for names in files.values() if len(names) > 1] == [["openbeats", "openbeats_i3"]]


def test_the_list_is_a_copy():
    list_available_models()["openbeats"]["hf_repo"] = "someone/else"
    get_model_info("openbeats")["hf_repo"] = "someone/else"

    assert list_available_models()["openbeats"]["hf_repo"] == "shikhar7ssu/OpenBEATs-Base-i3"


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(UnknownCheckpointError, match="Did you mean 'openbeats'"):
        get_model_info("openbeat")
    with pytest.raises(ValueError, match="no checkpoint named"):
        get_model_info("nonsense")


def test_listing_and_finding_import_no_torch():
    code = (
        "import sys; from beats_trainer import list_available_models, find_checkpoint, ensure_checkpoint;"
        "list_available_models(); find_checkpoint('openbeats', ['.']);"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
