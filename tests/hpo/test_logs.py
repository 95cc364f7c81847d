"""The service's own log: a JSON object a line, which says whose it is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpo.control.messages import Message
from hpo.observers.logs import LogObserver, logged
from tests.hpo.stage import Stage, play, ppl


def test_every_line_says_its_study_and_controller_and_its_trial_and_attempt(
    tmp_path: Path,
) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    with logged(tmp_path, "played", 1):
        controller = stage.controller(LogObserver())
        play(
            controller,
            Message("evaluated", 100, ppl(9.0)),
            Message("worker_lost", 120, detail="a\nb"),
        )
        play(controller, Message("finished", 300, ppl(8.0)))
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logging.getLogger("some.library").exception("it broke")
    logging.getLogger("hpo").warning("after its end")

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {(line["study"], line["controller"]) for line in lines} == {("played", 1)}

    def told(line: dict[str, Any]) -> tuple[Any, ...]:
        return line["level"], line["message"], line.get("trial"), line.get("attempt")

    assert [told(line) for line in lines] == [
        ("INFO", "trial 0 begins attempt 1", 0, 1),
        ("INFO", "trial 0 at step 100: valid_ppl 9, step_seconds 0.1", 0, 1),
        ("INFO", "trial 0 is RUNNING (worker_lost)", 0, 1),
        ("WARNING", "trial 0: worker_lost: a\nb", 0, 1),
        ("INFO", "trial 0 begins attempt 2", 0, 2),
        ("INFO", "trial 0 at step 300: valid_ppl 8, step_seconds 0.1", 0, 2),
        ("INFO", "trial 0 is COMPLETE", 0, 2),
        ("ERROR", "it broke", None, None),
    ]  # fmt: skip
    assert [line.get("reason") for line in lines[2:5]] == ["worker_lost", None, None]
    assert "ValueError: two\nlines" in lines[-1]["exception"]


def test_both_logs_go_on_in_new_files_once_they_were_moved_away(tmp_path: Path) -> None:
    program = f"""if True:
        import logging, os, pathlib
        from hpo.observers.logs import logged
        from trainer.terminal import Quiet
        folder = pathlib.Path({str(tmp_path)!r})
        with Quiet() as quiet:
            quiet.keep_in(folder / "log.txt")
            with logged(folder, "played", 1, quiet.follow):
                logging.getLogger("hpo.study").info("first")
                for name in ("log.txt", "log.jsonl"):
                    (folder / name).rename(folder / (name + ".1"))
                logging.getLogger("hpo.study").info("second")
                print("a library")
                os.write(2, b"another\\n")
    """
    subprocess.run([sys.executable, "-c", program], check=True)
    for name in ("log.txt", "log.jsonl"):
        old, new = (tmp_path / f"{name}.1").read_text(), (tmp_path / name).read_text()
        assert ("first" in old, "second" in old) == (True, False)
        assert ("first" in new, "second" in new) == (False, True)
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["a library", "another"]
