"""Any diffusers pipeline: search a schedule through its own loop, and sample with one.

    from oss_ext.integrations.diffusers import applied, search

    result = search(pipe, steps=10, prompt=prompts, guidance_scale=3.5)
    with applied(pipe, result.schedule):
        images = pipe(prompt, guidance_scale=3.5).images

Nothing here imports diffusers: a pipeline brings it along.
"""

from oss_ext.integrations.diffusers.attach import Applied, applied, apply
from oss_ext.integrations.diffusers.family import Family, family_of
from oss_ext.integrations.diffusers.mismatch import ScheduleMismatchWarning
from oss_ext.integrations.diffusers.search import search

__all__ = ["Applied", "Family", "ScheduleMismatchWarning", "applied", "apply", "family_of", "search"]
