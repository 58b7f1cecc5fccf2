import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.ops.divergence import symmetric_kl
from unspool.ops.hierarchy import Tree, cut, cut_into, joined, merge_tree


def centroids_of(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 7, generator=generator, dtype=torch.float64).softmax(1)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 12), seed=st.integers(0, 99))
def test_cuts_are_nested_from_every_leaf_to_one(count: int, seed: int) -> None:
    tree = merge_tree(centroids_of(count, seed))
    assert len(tree.joins) == count - 1
    finer = torch.arange(count)
    for clusters in range(count, 0, -1):
        labels = cut_into(tree, clusters)
        assert len(labels.unique()) == clusters
        pairs = {(int(a), int(b)) for a, b in zip(finer, labels, strict=True)}
        assert len(pairs) == len(finer.unique())
        finer = labels


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 99), height=st.floats(0, 3))
def test_cuts_are_those_of_mean_distances_between_members(count: int, seed: int, height: float) -> None:
    centroids = centroids_of(count, seed)
    between = symmetric_kl(centroids, centroids)
    groups = [[i] for i in range(count)]
    while len(groups) > 1:
        distance, a, b = min(
            (float(between[groups[a]][:, groups[b]].mean()), a, b)
            for a in range(len(groups))
            for b in range(a)
        )
        if distance > height:
            break
        groups[b] = sorted(groups[b] + groups.pop(a))
    expected = torch.empty(count, dtype=torch.int64)
    for number, group in enumerate(sorted(groups)):
        expected[group] = number
    assert torch.equal(cut(merge_tree(centroids), height), expected)


def test_heights_ascend() -> None:
    heights = merge_tree(centroids_of(20, 0)).heights
    assert bool((heights.diff() >= 0).all())


def test_clusters_are_numbered_by_their_first_leaves() -> None:
    tree = Tree(5, torch.tensor([[1, 4], [0, 2]]), torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert cut(tree, 0.0).tolist() == [0, 1, 2, 3, 4]
    assert cut(tree, 0.1).tolist() == [0, 1, 2, 3, 1]
    assert cut(tree, 9).tolist() == [0, 1, 0, 2, 1]


def test_joins_of_two_trees_keep_the_lowest_way() -> None:
    joins = torch.tensor([[0, 1], [1, 2], [0, 2]])
    tree = joined(3, joins, torch.tensor([0.5, 0.3, 0.4], dtype=torch.float64))
    assert tree.joins.tolist() == [[1, 2], [0, 2]]
    assert tree.heights.tolist() == [0.3, 0.4]


def test_a_tree_of_one_leaf_or_none_has_no_joins() -> None:
    for count in (0, 1):
        tree = merge_tree(torch.rand(count, 3))
        assert cut(tree, 1.0).tolist() == list(range(count))
