"""The README and the pages of ``docs/``: their Python runs, their commands are what CI runs, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from beats_trainer.cli.program import COMMANDS, build_parser
from documents import build_stand_ins, copy_stand_ins, read_blocks, run_block

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in read_blocks(page, "python")]
IDS = [f"{page.stem}-{block.name}" for page, block in BLOCKS]
COMMAND_LINES = [
    (page, line)
    for page in PAGES
    for block in read_blocks(page, "bash")
    for line in block.code.splitlines()
    if line.startswith("beats-trainer ")
]
QUICKER = {
    "max_epochs = 50": "max_epochs = 1",
    "max_epochs = 20": "max_epochs = 1",
    "max_epochs=100": "max_epochs=1",
    'architecture="small")': 'architecture="nano", steps=1, tokenizer_steps=1, batch_s=2, window_s=1, '
    "iterations=1, log_every=1, validate_every=1, checkpoint_every=1)",
    "encoder_layers=12": "encoder_layers=1",
    "encoder_embed_dim=768": "encoder_embed_dim=48",
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    return build_stand_ins(tmp_path_factory.mktemp("stand_ins"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=IDS)
def test_block_runs_as_it_stands(page, block, stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(copy_stand_ins(stand_ins, tmp_path / "work"))

    run_block(block, page, QUICKER, prelude="")


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=[line for _, line in COMMAND_LINES])
def test_command_has_options_that_exist(page, line):
    arguments = shlex.split(line, comments=True)[1:]
    if "..." in arguments:
        pytest.skip("an outline, not a command")
    build_parser().parse_args(arguments[: arguments.index(">")] if ">" in arguments else arguments)


def test_ci_runs_the_two_commands_of_the_readme():
    commands = [
        line
        for block in read_blocks(README, "bash")
        for line in block.code.splitlines()
        if line.startswith("python3 -m venv")
    ]
    in_ci = [
        line.removesuffix(" || exit 1")
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line.startswith("python3 -m venv")
    ]

    assert len(commands) == 2
    assert commands == in_ci


def test_every_command_of_the_program_is_on_the_page_of_the_command_line():
    page = (ROOT / "docs" / "cli.md").read_text()

    assert all(f"beats-trainer {command}" in page for command in COMMANDS)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
