"""The seeds of draws."""

from cpo_ray.sampling.seeding import draw_seed, generator


def test_a_seed_depends_on_each_part_and_does_not_change():
    base = (17, "row", "batch", 0)
    others = [(18, "row", "batch", 0), (17, "row1", "batch", 0), (17, "row", "truncation", 0), (17, "row", "batch", 1)]
    assert len({draw_seed(*parts) for parts in [base, *others]} | {draw_seed(*base, attempt=1)}) == 6
    assert draw_seed(*base) == 0x140F009A59F06503
    assert generator(*base).integers(1000) == generator(*base).integers(1000)
