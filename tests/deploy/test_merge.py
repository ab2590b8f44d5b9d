"""One page of metrics out of many: every figure is there, as it was, under its process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.merge import merge


def page(scale: float) -> str:
    registry = CollectorRegistry()
    counter = Counter("c_total", 'Counts "things",\nor not', ["kind"], registry=registry)
    counter.labels('a "b" {c} d').inc(scale)
    counter.labels("# HELP not_a_family x\n# TYPE y z").inc(0.1 + 0.2)
    Counter("unlabelled_total", "No children yet", ["kind"], registry=registry)
    Gauge("plain", "No labels", registry=registry).set(1e300 * scale)
    Gauge("odd", "No number", registry=registry).set(float("nan"))
    Histogram("h_seconds", "Buckets", registry=registry, buckets=(0.1, 1)).observe(scale)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[str, list[str]]:
    """Return the samples of each family, as text: NaN equals nothing, itself included."""
    return {
        family.name: sorted(
            f"{sample.name} {sorted(sample.labels.items())} {sample.value!r}"
            for sample in family.samples
        )
        for family in text_string_to_metric_families(text)
    }


def test_every_sample_is_there_with_its_process() -> None:
    pages = {"origin": page(1), "edge-0": page(3.5)}
    expected: dict[str, list[str]] = {}
    for process, text in pages.items():
        for family in text_string_to_metric_families(text):
            expected.setdefault(family.name, []).extend(
                f"{s.name} {sorted({**s.labels, 'process': process}.items())} {s.value!r}"
                for s in family.samples
            )
    assert samples(merge(pages)) == {name: sorted(found) for name, found in expected.items()}


def test_family_stands_once_with_all_its_samples() -> None:
    merged = merge({"a": page(1), "b": page(2)})
    assert merged.count("# HELP plain ") == merged.count("# TYPE plain gauge\n") == 1
    assert merged.count("\nplain{process=") == 2


def test_family_that_only_one_process_has_is_kept() -> None:
    assert merge({"a": "", "b": "# HELP x y\n# TYPE x gauge\nx 1.0\n"}) == (
        '# HELP x y\n# TYPE x gauge\nx{process="b"} 1.0\n'
    )


def test_nobody_answered_and_there_is_an_empty_page() -> None:
    assert merge({}) == ""
