from benchmarks.shards import crops_per_second, make_loader, serve, write_shards


def test_all_sources_are_read(tmp_path):
    total = write_shards(tmp_path, 32, 2, seconds=0.2)
    assert total == sum(path.stat().st_size for path in (tmp_path / "audio").iterdir())
    with serve(tmp_path) as url:
        for dataset in (tmp_path / "audio", f"{url}/{{000..001}}.tar", f"{url}/*.parquet"):
            loader = make_loader(str(dataset), 2, seconds=0.2)
            assert loader.num_workers == 2
            assert crops_per_second(loader, 32) > 0
