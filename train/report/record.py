"""The numbers of a report as JSON."""

import jax

from mhc_jax import diagnostics
from train.report.page import Findings
from train.storage.outputs import json_text

# Of the layout; a field that goes or changes its meaning raises it, a further one does not.
VERSION = 1


def dump(findings: Findings) -> str:
    """One object; numbers that are not finite are null.

    - ``version``: of this layout;
    - ``name``, ``config``, ``summary``: the run, and its summary if it is finished;
    - ``device``: the kind that all of it was measured on;
    - ``parameters``, ``cost``, ``policies``: the rows of those tables;
    - ``profile``: null if it was not measured, else the fields of :class:`train.measure.parts.Profile`;
    - ``streams``: null if no site taps its coefficients, else ``tokens``, a description; ``sites``, their names through
      depth; and ``statistics``, lists by site, as :func:`mhc_jax.diagnostics.statistics` describes them.
    """
    streams = None
    if findings.streams is not None:
        sites = diagnostics.site_names(findings.config.model)
        streams = {"tokens": findings.tokens, "sites": sites, "statistics": findings.streams}
    record = {
        "version": VERSION,
        "name": findings.name,
        "config": findings.config.to_dict(),
        "summary": findings.summary,
        "device": jax.devices()[0].device_kind,
        "parameters": findings.parameters,
        "cost": findings.cost,
        "policies": findings.policies,
        "profile": findings.profile and findings.profile.to_dict(),
        "streams": streams,
    }
    return json_text(record)
