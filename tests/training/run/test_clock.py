"""Wall time and its parts, by hand: nested phases, gaps, and a run that is resumed."""

from solostream.training.run.clock import Clock


def test_parts_add_up_over_nested_phases_and_resumes() -> None:
    now = [10.0]
    clock = Clock({}, 8.0, now=lambda: now[0])
    with clock.phase("build"):  # 2 s had passed before it
        now[0] += 3
    now[0] += 0.5
    with clock.phase("reinforcement"):
        now[0] += 4
        with clock.phase("evaluation"):
            now[0] += 5
        now[0] += 6
        saved = clock.times()  # a checkpoint inside a phase
        now[0] += 100  # lost: the process is killed
    assert saved == {"other": 2.5, "build": 3, "reinforcement": 10, "evaluation": 5}
    assert sum(saved.values()) == 28.5 - 8.0
    again = Clock(saved, 1000.0, now=lambda: now[0])
    now[0] = 1001.0
    with again.phase("reinforcement"):
        now[0] += 7
    assert again.times() == {"other": 3.5, "build": 3, "reinforcement": 17, "evaluation": 5}
