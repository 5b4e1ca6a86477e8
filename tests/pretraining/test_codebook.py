"""The codebook in training: moved as the formula says, alike on all processes, by real tokens only."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from beats_trainer.errors import CodebookCollapseError, ConfigError
from beats_trainer.model.tokenizer import Codebook
from beats_trainer.pretraining import CodeUsage, check_usage
from beats_trainer.pretraining.codebook import move_codes, start_codes


def unit(count, width=4, seed=0):
    return F.normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def codebook(num_codes=6, width=4):
    torch.manual_seed(0)
    return Codebook(num_codes, width)


def test_codes_move_as_the_formula_says_in_double_precision():
    book = codebook()
    weight = book.embedding.weight.double().numpy().copy()
    usage = np.zeros(6)

    for step in range(5):
        vectors = unit(40, seed=step)
        codes = book(vectors[None])[0]
        exact = vectors.double().numpy()
        nearest = (exact @ weight.T).argmax(axis=1)
        assert nearest.tolist() == codes.tolist()
        move_codes(book, vectors, codes)

        counts = np.bincount(nearest, minlength=6)
        usage = 0.99 * usage + 0.01 * counts
        for code in range(6):
            mean = weight[code]
            if counts[code]:
                mean = exact[nearest == code].sum(axis=0)
                mean = mean / np.linalg.norm(mean)
            weight[code] = 0.99 * weight[code] + 0.01 * mean
            weight[code] /= np.linalg.norm(weight[code])

        np.testing.assert_allclose(book.embedding.weight.numpy(), weight, atol=1e-6)
        np.testing.assert_allclose(book.cluster_size.numpy(), usage, atol=1e-6)


def test_a_code_that_nothing_is_near_to_stays():
    book = codebook()
    before = book.embedding.weight.clone()
    vectors = before[:2].repeat(5, 1)

    move_codes(book, vectors, book(vectors[None])[0])

    torch.testing.assert_close(book.embedding.weight[2:], before[2:])


def test_the_start_is_k_means_by_angle_and_follows_from_the_seed():
    centres = torch.eye(4)
    vectors = F.normalize(centres.repeat(50, 1) + 0.05 * unit(200, seed=1), dim=1)
    books = [codebook(num_codes=4) for _ in range(3)]

    for book, seed in zip(books, (0, 0, 3), strict=True):
        start_codes(book, vectors * 7.0, seed)  # of any length

    assert torch.equal(books[0].embedding.weight, books[1].embedding.weight)
    book = books[0]
    torch.testing.assert_close(book.embedding.weight.norm(dim=1), torch.ones(4))
    # Means of the vectors that are nearest to them: another round moves nothing.
    nearest = book(vectors[None])[0]
    for code in nearest.unique():
        mean = F.normalize(vectors[nearest == code].sum(dim=0), dim=0)
        assert float(mean @ book.embedding.weight[code]) > 0.999


def test_fewer_vectors_than_codes_are_refused():
    with pytest.raises(ConfigError, match="fewer codes"):
        start_codes(codebook(num_codes=6), unit(5), 0)


def test_usage_is_the_entropy_of_the_codes():
    counts = torch.tensor([5, 0, 3, 2])
    share = np.array([0.5, 0.3, 0.2])

    usage = CodeUsage.of(counts)

    assert usage.num_used == 3
    assert usage.top_share == 0.5
    assert usage.entropy == pytest.approx(-(share * np.log(share)).sum())
    assert usage.perplexity == pytest.approx(np.exp(usage.entropy), abs=1e-5)


def test_a_collapse_stops_with_what_to_do():
    counts = torch.zeros(1024)
    counts[3] = 990
    counts[7] = 10

    with pytest.raises(CodebookCollapseError, match=r"(?s)2 of 1024 codes.*99%.*normalized"):
        check_usage(counts, "The codes")
    check_usage(torch.ones(1024), "The codes")
    check_usage(torch.zeros(1024), "The codes")  # nothing was heard yet


def _move_in_process(rank, port, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    book = codebook()
    for step in range(3):
        vectors = unit(40, seed=step)[rank::2]
        move_codes(book, vectors, book(vectors[None])[0])
    torch.save(book.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_move_the_codes_as_one_does_with_all_vectors(tmp_path, unused_port):
    spawn(_move_in_process, (unused_port, str(tmp_path)), nprocs=2)
    book = codebook()
    for step in range(3):
        vectors = unit(40, seed=step)
        move_codes(book, vectors, book(vectors[None])[0])

    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, value in book.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], value, atol=1e-6, rtol=1e-6)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
