from attribench.computing.seeding import derive_seed


def test_a_seed_depends_on_every_axis_and_on_nothing_else() -> None:
    seeds = {derive_seed(42, "training", "subset", k, "seed", s) for k in range(50) for s in range(3)}
    assert len(seeds) == 150
    assert derive_seed(42, "a") == derive_seed(42, "a")
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_every_process() -> None:
    # SHA-256 of "int:42\x1fstr:noise", first 8 bytes, one bit dropped; worked out with another tool.
    import subprocess

    digest = subprocess.run(
        ["sha256sum"], input=b"int:42\x1fstr:noise", capture_output=True, check=True
    ).stdout.decode()
    assert derive_seed(42, "noise") == int(digest[:16], 16) // 2
