"""Configurations and machines: only what differs is laid side by side."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from samestep.report import facts, raw, records
from tests.report import made

columns = st.dictionaries(
    st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(0, 1)), min_size=1
)


@given(columns)
def test_every_field_is_either_shared_or_differs(found: facts.Columns) -> None:
    shared, differing = facts.compare(found)
    assert sorted([*shared, *differing]) == sorted({name for column in found.values() for name in column})
    for name in shared:
        assert len({column[name] for column in found.values()}) == 1


def test_values_of_another_type_differ() -> None:
    assert facts.compare({"a": {"x": 1}, "b": {"x": True}, "c": {"x": 1.0}}) == ([], ["x"])


def test_only_what_differs(tmp_path: Path) -> None:
    first, whole = facts.configuration(records.find(made.fill(tmp_path))).parts[0].tables
    assert first.head == ["field", "scale", "one", "two"]
    assert first.rows == [["workers", "1", "1", "2"]]
    assert whole.is_folded
    assert len(whole.rows) == len(made.config())


def test_a_single_record_has_one_table(tmp_path: Path) -> None:
    made.write_run(tmp_path / "one")
    tables = facts.configuration(records.find(tmp_path)).parts[0].tables
    assert [table.is_folded for table in tables] == [False]


def test_equal_configurations(tmp_path: Path) -> None:
    made.write_run(tmp_path / "one")
    made.write_run(tmp_path / "two")
    part = facts.configuration(records.find(tmp_path)).parts[0]
    assert part.words == "All records have the same configuration."


def test_the_machine(tmp_path: Path) -> None:
    tables = facts.machine(records.find(made.fill(tmp_path))).parts[0].tables
    rows = {row[0]: row[1] for table in tables for row in table.rows}
    assert rows["processor"] == "Made-up CPU"
    assert rows["quota cores"] == "–"
    assert rows["caches L3"] == "32.0 MiB"
    assert rows["copy one core"] == "12.50 GB/s"
    assert rows["torch"] == "2.13.0"


def test_other_machines_are_told(tmp_path: Path) -> None:
    made.write_run(tmp_path / "one")
    made.write_run(tmp_path / "two", made.run(environment=made.environment(processor="Another CPU")))
    found = records.find(tmp_path)
    (said,) = facts.differences(found)
    assert "one and two were not measured alike" in said
    assert "processor is Made-up CPU in one and Another CPU in the other" in said
    (alert,) = facts.alerts(found)
    assert alert.title == "Not measured alike"
    assert alert.sentences == [
        said,
        "Charts of runs over time are drawn for each machine, version and setting of threads by itself.",
    ]
    assert any(table.title == "Host: what differs" for table in facts.machine(found).parts[0].tables)


def test_a_machine_that_is_not_told(tmp_path: Path) -> None:
    body = made.run()
    del body["environment"]
    made.write_run(tmp_path / "one", body)
    found = records.find(tmp_path)
    assert facts.machine(found).parts[0].notes == ["one: the record does not tell where it ran."]
    assert facts.differences(found) == []
    made.write_run(tmp_path / "two")
    found = records.find(tmp_path)
    assert facts.alerts(found)[0].sentences[0] == (
        "one does not tell where it was measured, so its times cannot be compared with those of others."
    )


def test_records_of_one_machine_need_no_warning(tmp_path: Path) -> None:
    assert facts.alerts(records.find(made.fill(tmp_path))) == []


def test_a_run_and_a_study_of_another_machine_share_no_chart(tmp_path: Path) -> None:
    made.write_study(tmp_path / "scale")
    made.write_run(tmp_path / "one", made.run(environment=made.environment(cores=8)))
    (alert,) = facts.alerts(records.find(tmp_path))
    assert [each.partition(": ")[2] for each in alert.sentences] == ["cores is 4 in one and 8 in the other."]


def test_a_study_and_a_run_in_one_folder(tmp_path: Path) -> None:
    made.write_study(tmp_path / "both")
    made.write_run(tmp_path / "both")
    found = records.find(tmp_path)
    assert facts.configuration(found).parts[0].tables[0].head[1:] == ["both", "both (run)"]
    assert [each.file for each in raw.downloads(found)] == ["both-study", "both-run"]


def test_summaries_are_short_and_say_so(tmp_path: Path) -> None:
    made.write_run(tmp_path / "one", made.run(num_steps=5000))
    steps, evaluations = raw.section(records.find(tmp_path)).parts[0].tables
    assert len(steps.rows) == len(evaluations.rows) == 20
    assert steps.note == "20 of 5,000 steps, evenly spread; the downloads hold all."
    assert [steps.rows[0][0], steps.rows[-1][0]] == ["1", "5,000"]
