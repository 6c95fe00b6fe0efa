"""In CI a skipped test is a failure, unless it is marked ``gpu``."""

import os

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no wrong result
settings.load_profile("untimed")


class NoSkips:
    """Fails the session if a test without the ``gpu`` marker was skipped, and says which."""

    def __init__(self):
        self.skipped = {}

    def _note(self, report):
        if report.skipped and not hasattr(report, "wasxfail") and not getattr(report, "gpu", False):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[report.nodeid] = reason

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        report.gpu = item.get_closest_marker("gpu") is not None  # xdist carries this to the controller
        return report

    def pytest_runtest_logreport(self, report):
        self._note(report)

    def pytest_collectreport(self, report):
        self._note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        is_worker = hasattr(session.config, "workerinput")
        if self.skipped and not is_worker and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.skipped:
            terminalreporter.section("skipped without the gpu marker: not allowed in CI", red=True)
            for nodeid, reason in sorted(self.skipped.items()):
                terminalreporter.line(f"{nodeid}: {reason}")


def pytest_configure(config):
    if os.environ.get("CI"):
        config.pluginmanager.register(NoSkips(), "no-skips")
