# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that reports as TAP, so that meson counts single tests:

    PYTHONPATH=tests pytest -p tap FILE
"""
import sys

import pytest


class Tap:
    def __init__(self):
        self.n = 0

    def line(self, ok, name, directive=""):
        self.n += 1
        print(f"{'ok' if ok else 'not ok'} {self.n} - {name}{directive}", flush=True)

    def pytest_collectreport(self, report):
        if report.failed:
            self.line(False, report.nodeid or "collection")
            self.explain(report)

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::", 1)[-1].replace("#", "")
        if report.failed:
            self.line(False, name if report.when == "call" else f"{name} ({report.when})")
            self.explain(report)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "xfail"
            self.line(True, name, f" # SKIP {reason}")
        elif report.when == "call":
            self.line(True, name)

    def explain(self, report):
        for line in str(report.longrepr).splitlines():
            print("#", line)
        for title, text in report.sections:
            print(f"# --- {title}", *text.splitlines(), sep="\n# ")

    def pytest_sessionfinish(self):
        print(f"1..{self.n}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        config.pluginmanager.unregister(reporter)
    sys.stdout.reconfigure(errors="backslashreplace")
    config.pluginmanager.register(Tap())
