"""Starts a site's end of a study, as FLARE does, and lets the others go on where it is killed."""

from __future__ import annotations

from typing import Any

from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle


class SiteLauncher(ClientProcessJobLauncher):  # type: ignore[misc]
    """Starts the process of a study at a site.

    FLARE ends a study at all sites when the process of one of them is killed, as one is that takes too much memory.
    Whether the others suffice is for the study's quorum to say.
    """

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: Any) -> ProcessHandle:
        """Start the process."""
        return _Handle(process_adapter=super().launch_job(job_meta, fl_ctx).adapter)


class _Handle(ProcessHandle):  # type: ignore[misc]
    def poll(self) -> int:
        """How the process ended; FLARE does nothing about what is unknown."""
        code = self.adapter.poll()
        return int(JobReturnCode.UNKNOWN if code is not None and code < 0 else super().poll())
